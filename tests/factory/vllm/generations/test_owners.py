"""Parts of prompts find their prompt again."""

from __future__ import annotations

from kvtier.factory.vllm.generations.owners import Owners


def test_the_parts_of_a_prompt_are_of_the_request_that_asked_for_it() -> None:
    owners = Owners(lambda name: None)
    names = [owners.asked(prompt) for prompt in ([b"h", b"a1", b"a2"], [b"h", b"b1", b"b2"])]
    assert len(set(names)) == 2
    assert [owners.storing([b"h", b"a1"]), owners.storing([b"a2"])] == [names[0]] * 2
    assert [owners.storing([b"h"]), owners.storing([b"b1", b"b2"])] == [names[1]] * 2
    assert owners.storing([b"a2", b"generated"]) == names[0]
    assert owners.storing([b"generated later"]) not in names


def test_a_prompt_that_waits_stays_one_and_the_same_request_anew_is_another() -> None:
    ended: list[str] = []
    owners = Owners(ended.append)
    for _ in range(3):
        name = owners.asked([b"a", b"b"])
    assert ended == []
    owners.storing([b"a"])
    owners.storing([b"b"])
    assert ended == []
    assert owners.asked([b"a", b"b"]) == name
    assert ended == [name]


def test_the_oldest_prompts_are_forgotten_and_what_others_share_with_them_is_not() -> None:
    ended: list[str] = []
    owners = Owners(ended.append, keys_max=4)
    old = owners.asked([b"h", b"a"])
    young = owners.asked([b"h", b"b"])
    owners.asked([b"c"])
    assert ended == [old]
    assert owners.storing([b"h"]) == young
    assert owners.storing([b"a"]) == old, "a prompt of its own by now"
    owners.asked([b"d%d" % number for number in range(9)])
    assert len(ended) == 4, "one prompt larger than the bound is kept"
