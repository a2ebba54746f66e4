"""amqtt's plugins for authentication and topics: they ask `broker.rules`. Neither ever raises."""

from dataclasses import dataclass

from amqtt.contexts import Action
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import Session

from broker import rules


class RulesAuth(BaseAuthPlugin):
    """Who may come in: a client id with no user name, or with the one that belongs to it."""

    @dataclass
    class Config:
        """Observers come in on the loopback interface only."""

        observers: bool = False

    async def authenticate(self, *, session: Session) -> bool:
        client_id = session.client_id or ""
        if rules.role_of(client_id) is rules.Role.OBSERVER:
            return bool(self.config.observers)
        return session.username in {None, "", client_id, rules.user_of(client_id)}


class RulesTopics(BaseTopicPlugin):
    """Who may say and hear what."""

    async def topic_filtering(
        self, *, session: Session | None = None, topic: str | None = None, action: Action | None = None
    ) -> bool:
        if session is None or topic is None or action is None:
            return False
        return rules.may(session.client_id or "", action, topic)
