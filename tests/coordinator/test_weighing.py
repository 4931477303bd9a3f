"""What updates count: clipped, and normalised by the local steps that their devices took."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.fold import Folder
from coordinator.state import Request
from coordinator.strategies import Weight, begun, server_optimiser, weigh
from schemas.errors import JobRefused
from schemas.jobs import JobSpec, LocalPlan, ServerSettings, parse_job
from schemas.schedules import Schedule
from tests.coordinator.stored_updates import Sender, layout_of, read
from tests.standin import spec

NOVA = ServerSettings(normalised=True)
SGD = LocalPlan()


def request(samples: int = 1, norm: float = 1.0, steps: int = 1) -> Request:
    return Request("d0", 1, 1, b"", norm=norm, samples=samples, steps=steps)


def counts(answered: Request, server: ServerSettings, local: LocalPlan) -> Weight:
    return weigh(answered, JobSpec(name="j", task="t", server=server, local=local))


def round_of(server: ServerSettings, base: float, updates: list[tuple[float, Request]]) -> float:
    """The model of one parameter after a round in which each device changed it by so much."""
    folder, optimiser = Folder(layout_of(1)), server_optimiser(server)
    for delta, answered in updates:
        read(folder, Sender(1).stored(np.array([delta], np.float32), answered.samples), 1)
        folder.add(counts(answered, server, SGD))
    model = folder.finish(np.array([base], "<f4").tobytes(), optimiser, begun(optimiser, 1))
    return float(np.frombuffer(model, "<f4")[0])


def test_without_a_rule_an_update_counts_its_samples() -> None:
    assert counts(request(7, norm=99.0, steps=5), ServerSettings(), SGD) == Weight(7)


def test_a_longer_change_is_scaled_down_and_a_shorter_one_left_alone() -> None:
    clipping = ServerSettings(clip_norm=2.0)
    assert counts(request(7, norm=8.0), clipping, SGD) == Weight(7, scale=0.25)
    assert counts(request(7, norm=2.0), clipping, SGD) == Weight(7)
    told = round_of(clipping, 1.0, [(8.0, request(3, norm=8.0)), (-1.0, request(1))])
    assert told == pytest.approx(1.0 + (3 * 2.0 - 1.0) / 4)


@given(steps=st.integers(1, 300), momentum=st.floats(0.0, 0.99))
def test_the_effort_is_the_sum_of_what_each_gradient_counts(steps: int, momentum: float) -> None:
    pulls = [sum(momentum**later for later in range(steps - step)) for step in range(steps)]
    effort = counts(request(steps=steps), NOVA, LocalPlan(momentum=momentum)).effort
    assert effort == pytest.approx(sum(pulls), rel=1e-12)


def test_with_a_momentum_that_forgets_nothing_the_effort_is_not_lost_to_rounding() -> None:
    for momentum in (1 - 1e-8, 1 - 2**-53):
        told = [counts(request(steps=steps), NOVA, LocalPlan(momentum=momentum)) for steps in (1, 3, 1000)]
        assert [weight.effort for weight in told] == pytest.approx([1, 6, 1000 * 1001 / 2], rel=1e-4)


@given(
    steps=st.integers(1, 300),
    momentum=st.sampled_from([0.0, 0.5, 0.9]),
    pull=st.floats(1e-6, 0.9),
)
def test_what_held_steps_back_makes_their_effort_less(steps: int, momentum: float, pull: float) -> None:
    local = LocalPlan(learning_rate=0.5, momentum=momentum, proximal=2 * pull)
    speed = way = 0.0
    for _ in range(steps):
        speed = momentum * speed + 1.0 - pull * way
        way += speed
    assert counts(request(steps=steps), NOVA, local).effort == pytest.approx(way, rel=1e-9)
    if not momentum:
        assert way == pytest.approx((1 - (1 - pull) ** steps) / pull, rel=1e-9)


def test_the_proximal_pull_is_that_of_the_rounds_own_rate() -> None:
    plan = LocalPlan(proximal=1.0, schedule=Schedule(kind="step", rounds=1, factor=0.5))
    second = LocalPlan(proximal=1.0, learning_rate=0.05)
    asked = replace(request(steps=9), round=2)
    assert counts(asked, NOVA, plan) == counts(asked, NOVA, second) != counts(request(steps=9), NOVA, plan)


@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 50)), min_size=1, max_size=6))
def test_equal_gradients_move_the_model_by_the_mean_effort(devices: list[tuple[int, int]]) -> None:
    updates = [(0.25 * steps, request(samples, steps=steps)) for samples, steps in devices]
    mean = sum(samples * steps for samples, steps in devices) / sum(samples for samples, _ in devices)
    assert round_of(NOVA, 0.0, updates) == pytest.approx(0.25 * mean, rel=1e-5)


def fixed_point(server: ServerSettings, rate: float) -> float:
    """Where rounds on ½·(x - b)² for each device lead, which take so many steps at ``rate``."""
    model = 0.0
    for _ in range(4_000):
        updates = [
            (float(((1 - rate) ** steps - 1) * (model - best)), request(samples, steps=steps))
            for best, samples, steps in DEVICES
        ]
        after = round_of(server, model, updates)
        if after == model:
            break
        model = after
    return model


DEVICES = [(1.0, 1, 1), (-1.0, 1, 20)]  # best, samples, steps
BEST = 0.0


def test_fednova_comes_to_the_optimum_where_fedavg_comes_to_another_point() -> None:
    """FedAvg's is Σ n·c·b / Σ n·c with c = 1 - (1 - η)^τ, whatever η is (Wang et al. 2020, theorem 1): about
    Σ n·τ·b / Σ n·τ = -0.905. FedNova's goes to the optimum as η goes to 0."""
    rates = (0.02, 0.01)
    for rate in rates:
        pulls = [samples * (1 - (1 - rate) ** steps) for _, samples, steps in DEVICES]
        wrong = sum(pull * best for pull, (best, _, _) in zip(pulls, DEVICES, strict=True)) / sum(pulls)
        assert wrong < -0.85
        assert fixed_point(ServerSettings(), rate) == pytest.approx(wrong, abs=0.01)
    coarse, fine = (abs(fixed_point(NOVA, rate) - BEST) for rate in rates)
    assert fine < 0.06
    assert fine == pytest.approx(coarse / 2, rel=0.15)


@pytest.mark.parametrize("claimed", [1, 5, 100])
def test_fewer_steps_claimed_than_samples_take_make_no_clipped_change_count_more(claimed: int) -> None:
    """Both took 100 steps of one sample each; the second claims fewer, so that less divides its change."""
    bounded, local = ServerSettings(normalised=True, clip_norm=2.0), LocalPlan(batch_size=1)
    honest, liar = (counts(request(100, norm=2.0, steps=n), bounded, local) for n in (100, claimed))
    assert liar.of_change == pytest.approx(honest.of_change)


def test_a_norm_to_clip_to_above_the_norm_that_is_rejected_is_refused() -> None:
    with pytest.raises(JobRefused, match="clip_norm 5 exceeds update_norm_max 4"):
        parse_job(spec(update_norm_max=4.0, server={"clip_norm": 5.0}))


def test_the_steps_of_a_training_follow_from_its_samples() -> None:
    local = LocalPlan(epochs=3, batch_size=10)
    assert [local.steps(samples) for samples in (1, 10, 11)] == [3, 3, 6]
    assert LocalPlan(epochs=3, batch_size=10, steps_max=5).steps(11) == 5
