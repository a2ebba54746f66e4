"""MQTT user names for client ids: one person may be there twice, under one name and two ids."""


def user_of(client_id: str) -> str:
    """Say whose client id it is: "operator-1f" is the operator's."""
    staff = client_id.partition("-")[0]
    return staff if staff in {"coordinator", "operator", "dashboard"} else client_id
