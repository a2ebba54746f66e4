"""A wire that is a list, for connections without a socket."""


class ListWire:
    """Takes what is written while it is `open`, and keeps the rest unsent."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.unsent = 0
        self.reads = True
        self.aborted = self.closed = False

    def write(self, data):
        self.written.append(bytes(data))

    def close(self):
        self.closed = True

    def abort(self):
        self.aborted = True

    def pause_reading(self):
        self.reads = False

    def resume_reading(self):
        self.reads = True

    def get_write_buffer_size(self):
        return self.unsent

    def get_extra_info(self, name):
        return None
