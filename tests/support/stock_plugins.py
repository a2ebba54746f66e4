"""amqtt's plugins for authentication and topics, for the stock broker: the rules that the hardened one asks itself."""

from dataclasses import dataclass

from amqtt.contexts import Action
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import Session

from broker import rules
from broker.gate import Entrance, Gate, User


def user(session: Session, *, observers: bool = True) -> User | None:
    return Gate(observers=observers).enter(
        Entrance.PLAIN, session.client_id or "", session.username or None, None
    )


class RulesAuth(BaseAuthPlugin):
    """Who may come in."""

    @dataclass
    class Config:
        """Observers come in on the loopback interface only."""

        observers: bool = False

    async def authenticate(self, *, session: Session) -> bool:
        return user(session, observers=self.config.observers) is not None


class RulesTopics(BaseTopicPlugin):
    """Who may say and hear what."""

    async def topic_filtering(
        self, *, session: Session | None = None, topic: str | None = None, action: Action | None = None
    ) -> bool:
        if session is None or topic is None or action is None:
            return False
        known = user(session)
        return known is not None and rules.may(known.role, known.name, action, topic)
