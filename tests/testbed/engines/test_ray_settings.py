"""Which scenarios Ray can run, and which node each device goes to. No Ray is needed to know that."""

from __future__ import annotations

import pytest

from fedpruneshare.errors import SettingsError
from testbed.engines.ray_settings import Node, Post, RaySettings, plan_posts
from testbed.scenario import load_scenario

BIG, SMALL = Node("b", "big", "10.0.0.1", 8.0), Node("s", "small", "10.0.0.2", 2.0)


def names(count: int) -> list[str]:
    return [f"device-{index:02d}" for index in range(count)]


def faults(*overrides: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load_scenario("demo", overrides)
    return str(caught.value)


def counts(posts: list[Post]) -> list[tuple[str, int, float]]:
    return [(post.node.host, len(post.names), post.cpus) for post in posts]


def test_a_scenario_may_ask_for_ray_here_or_elsewhere() -> None:
    load_scenario("demo", ['fleet.engine="ray"'])
    scenario = load_scenario(
        "demo",
        [
            'fleet.engine="ray"',
            'fleet.ray.address="10.0.0.1:6379"',
            'brokers.kind="mosquitto"',
            'brokers.host="10.0.0.1"',
        ],
    )
    assert scenario.fleet.ray.address == "10.0.0.1:6379"


def test_what_cannot_be_is_said_with_its_key() -> None:
    ray = 'fleet.engine="ray"'
    assert 'brokers.kind: found "embedded" at 10.0.0.1' in faults(ray, 'brokers.host="10.0.0.1"')
    assert "fleet.ray.address: found ray://head:10001" in faults(ray, 'fleet.ray.address="ray://head:10001"')
    assert "fleet.ray: found keys with fleet.engine = 'process'" in faults("fleet.ray.nodes=2")
    assert "brokers.host: found 10.0.0.1, expected a loopback" in faults('brokers.host="10.0.0.1"')
    assert "links.backend: found 'tap' with fleet.engine = 'ray'" in faults(ray, 'links.backend="tap"')
    assert "fleet.engine: found 'ray' with emulated boards" in faults(
        ray, 'boards.cpu="duty-cycle"', 'fleet.groups.0.board="raspberry-pi-4b"'
    )


def test_devices_are_spread_by_cpus_and_the_order_of_nodes_does_not_matter() -> None:
    posts = plan_posts(names(10), [SMALL, BIG], RaySettings())
    assert counts(posts) == [("big", 8, 0.0), ("small", 2, 0.0)]
    assert posts == plan_posts(names(10), [BIG, SMALL], RaySettings())
    assert sorted(name for post in posts for name in post.names) == names(10)
    alike = plan_posts(names(4), [BIG, Node("c", "other", "10.0.0.3", 8.0)], RaySettings())
    assert [post.names for post in alike] == [("device-00", "device-02"), ("device-01", "device-03")]


def test_the_largest_nodes_are_taken_and_too_few_are_refused() -> None:
    assert counts(plan_posts(names(3), [SMALL, BIG], RaySettings(nodes=1))) == [("big", 3, 0.0)]
    with pytest.raises(SettingsError, match=r"fleet\.ray\.nodes: found 2 nodes with CPUs, expected 3"):
        plan_posts(names(3), [SMALL, BIG], RaySettings(nodes=3))
    with pytest.raises(SettingsError, match="found 0 nodes with CPUs, expected 1"):
        plan_posts(names(3), [], RaySettings())


def test_reserved_cpus_bound_what_a_node_takes() -> None:
    half = RaySettings(cpus_per_device=0.5)
    assert counts(plan_posts(names(20), [SMALL, BIG], half)) == [("big", 16, 8.0), ("small", 4, 2.0)]
    assert counts(plan_posts(names(1), [SMALL], half)) == [("small", 1, 0.5)]
    with pytest.raises(SettingsError, match=r"0\.5 for each of 21 devices.*node big \(10\.0\.0\.1\) with 8 CPUs"):
        plan_posts(names(21), [SMALL, BIG], half)


def test_more_posts_a_node_reserve_whole_cpus_each() -> None:
    settings = RaySettings(devices_per_actor=3, cpus_per_device=0.4)
    posts = plan_posts(names(8), [BIG], settings)
    assert counts(posts) == [("big", 3, 2.0), ("big", 3, 2.0), ("big", 2, 0.8)]
    assert sum(post.cpus for post in plan_posts(names(12), [BIG], settings)) <= BIG.cpus
