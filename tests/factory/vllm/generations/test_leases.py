"""Leases end what nobody asked about for a while, and nothing else."""

from __future__ import annotations

from chain_rig import Clock

from kvtier.factory.vllm.generations.leases import LEASE_S, Leases


def test_only_requests_not_heard_of_for_a_while_are_ended() -> None:
    clock = Clock()
    ended: list[str] = []
    leases = Leases(ended.append, clock)
    leases.renew("left")
    leases.renew("waits")
    clock.now_s = LEASE_S
    leases.renew("waits")
    clock.now_s = LEASE_S + 1
    leases.renew("new")
    assert ended == ["left"]
    clock.now_s = LEASE_S * 2 + 1
    leases.renew("new")
    assert ended == ["left", "waits"]


def test_a_settled_request_is_not_ended_again() -> None:
    clock = Clock()
    ended: list[str] = []
    leases = Leases(ended.append, clock)
    leases.renew("loads")
    leases.release("loads")
    leases.release("unknown")
    clock.now_s = LEASE_S + 1
    leases.renew("new")
    assert ended == []


def test_a_request_is_never_ended_by_its_own_return() -> None:
    clock = Clock()
    ended: list[str] = []
    leases = Leases(ended.append, clock)
    leases.renew("slow")
    clock.now_s = LEASE_S * 10
    leases.renew("slow")
    assert ended == []
