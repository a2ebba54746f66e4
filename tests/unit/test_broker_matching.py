"""The trie of filters against a linear search."""

from hypothesis import given
from hypothesis import strategies as st

from broker.matching import FilterTree
from broker.rules import covers

levels = st.sampled_from(["a", "b", "", "$x"])
topics = st.lists(levels, min_size=1, max_size=4).map("/".join)
filters = st.builds(
    lambda head, tail: "/".join([*head, *tail]),
    st.lists(levels | st.just("+"), min_size=1, max_size=4),
    st.sampled_from([[], ["#"]]),
) | st.just("#")


@given(st.lists(filters), st.lists(filters), st.lists(topics, min_size=1))
def test_the_trie_finds_what_a_search_finds(added, discarded, asked):
    tree = FilterTree()
    for name in added:
        tree.add(name)
    for name in discarded:
        tree.discard(name)
    left = set(added) - set(discarded)
    for topic in asked:
        assert sorted(tree.matching(topic)) == sorted(name for name in left if covers(name, topic))


def test_a_tree_that_was_emptied_holds_nothing():
    tree = FilterTree()
    for name in ("a/b/c", "a/b", "a/+/#"):
        tree.add(name)
    for name in ("a/b", "a/b/c", "a/+/#", "never/there"):
        tree.discard(name)
    assert not tree._root.children
