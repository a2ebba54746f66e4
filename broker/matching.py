"""Which filters match a topic: a trie over levels, so that the cost follows the topic and not the filters."""


class _Node:
    __slots__ = ("children", "filter")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.filter: str | None = None  # the filter that ends here


class FilterTree:
    """A set of topic filters."""

    def __init__(self) -> None:
        self._root = _Node()

    def add(self, name: str) -> None:
        """Put a filter in; a second time changes nothing."""
        node = self._root
        for level in name.split("/"):
            node = node.children.setdefault(level, _Node())
        node.filter = name

    def discard(self, name: str) -> None:
        """Take a filter out, if it is there."""
        path = [self._root]
        levels = name.split("/")
        for level in levels:
            child = path[-1].children.get(level)
            if child is None:
                return
            path.append(child)
        path[-1].filter = None
        for node, level in zip(reversed(path[:-1]), reversed(levels), strict=True):
            child = node.children[level]
            if child.filter is not None or child.children:
                return
            del node.children[level]

    def matching(self, topic: str) -> list[str]:
        """List the filters that match a topic (MQTT 3.1.1, section 4.7)."""
        found: list[str | None] = []
        nodes = [self._root]
        wild = not topic.startswith("$")  # [MQTT-4.7.2-1]: no wildcard at the first level then
        for level in topic.split("/"):
            following = []
            for node in nodes:
                children = node.children
                if wild:
                    if (rest := children.get("#")) is not None:
                        found.append(rest.filter)
                    if (one := children.get("+")) is not None:
                        following.append(one)
                if (exact := children.get(level)) is not None:
                    following.append(exact)
            nodes = following
            wild = True
        for node in nodes:
            found.append(node.filter)
            if (rest := node.children.get("#")) is not None:  # "a/#" matches "a" too
                found.append(rest.filter)
        return [name for name in found if name is not None]
