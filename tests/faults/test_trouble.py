"""What befalls a soak is the same for the same seed, and as much as was asked for."""

from collections import Counter
from itertools import pairwise

from faults import trouble
from support.proxy import Proxy

CLIENTS = ["client-1", "client-2", "client-3"]


def kills(seed, count=200):
    return trouble.kills(seed, count=count, seconds=600, clients=CLIENTS)


def faults(seed):
    return list(trouble.link_faults(seed, seconds=600, parts=CLIENTS))


def test_a_seed_says_who_is_killed_when():
    assert kills(1) == kills(1)
    assert kills(1) != kills(2)
    assert faults(1) == faults(1)
    assert faults(1) != faults(2)


def test_there_are_as_many_kills_as_were_asked_for_in_order():
    planned = kills(3)
    assert len(planned) == 200
    assert [kill.at_s for kill in planned] == sorted(kill.at_s for kill in planned)
    assert planned[0].at_s >= trouble.CALM_S
    assert kills(3, count=0) == []


def test_every_part_is_killed_clients_the_most_and_some_while_they_start():
    planned = kills(4)
    parts = Counter(kill.part for kill in planned)
    assert parts.keys() == {"broker", "coordinator", *CLIENTS}
    assert sum(parts[client] for client in CLIENTS) > parts["coordinator"] > parts["broker"] > 0
    soon = [
        later
        for first, later in pairwise(planned)
        if later.part == first.part and later.at_s - first.at_s - first.down_s < trouble.AGAIN_S[1]
    ]
    assert soon


def test_every_fault_happens_sooner_or_later():
    names = {fault.name for seed in range(5) for fault in faults(seed)}
    assert names == {trouble.STILL, *trouble.LINK_FAULTS}


def test_every_fault_of_a_link_can_be_done_and_undone():
    for name, (_, do) in trouble.LINK_FAULTS.items():
        proxy = Proxy("127.0.0.1", 1)
        undo = do(proxy, 1)
        assert undo is None or callable(undo), name
        if undo is not None:
            undo()
            assert proxy.weather == Proxy("127.0.0.1", 1).weather, name
            assert proxy._whole.is_set(), name
            assert not proxy.down._holding, name
