"""Which runs a sweep consists of, and what is refused before anything starts."""

import pathlib

import pytest

from dfkd_jax.errors import ConfigError
from dfkd_jax.sweeps import plan

CONFIG = "configs/mnist.py:smoke"


def runs(*sets, cases=(), fixed=None, seeds=(0,), split="validation"):
    axes = [plan.axis_of_set(text) for text in sets]
    if cases:
        axes.append(plan.axis_of_cases(cases))
    return plan.plan(
        CONFIG,
        fixed or {},
        axes,
        seeds=seeds,
        split=split,
        workdir=pathlib.Path("sweeps/x"),
    )


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1,2", ["1", "2"]),
        ("(4,2,1),(1,)", ["(4,2,1)", "(1,)"]),
        ("{'a': [1, 2]},{}", ["{'a': [1, 2]}", "{}"]),
        ('"a,b",c', ["a,b", "c"]),
        ("'it,s' , 2", ["it,s", "2"]),
        ("'(',)", ["(", ")"]),
        ("", [""]),
        ("1,", ["1", ""]),
    ],
)
def test_split_keeps_brackets_and_quotations_whole(text, parts):
    assert plan.split(text, ",") == parts


@pytest.mark.parametrize("text", ["(1,2", "'a", "[(1]", '"'])
def test_what_is_not_closed_is_refused(text):
    with pytest.raises(ConfigError, match="is missing"):
        plan.split(text, ",")


def test_every_combination_with_every_seed():
    found = runs(
        "targets.sigma=0.5,2", "synthesis.grid_factors=(4,2,1),(1,)", seeds=(0, 3)
    )
    assert [(run.name, run.seed) for run in found] == [
        (name, seed)
        for seed in (0, 3)
        for name in (
            "sigma=0.5,grid_factors=4-2-1",
            "sigma=0.5,grid_factors=1",
            "sigma=2,grid_factors=4-2-1",
            "sigma=2,grid_factors=1",
        )
    ]
    last = found[-1]
    assert last.changes == {"targets.sigma": 2.0, "synthesis.grid_factors": (1,)}
    assert last.settings.targets.sigma == 2.0
    assert last.settings.synthesis.grid_factors == (1,)
    assert last.settings.seed == 3
    assert last.settings.data.split == "validation"
    assert last.workdir == pathlib.Path("sweeps/x/sigma=2,grid_factors=1/seed3")
    assert f"--workdir={last.workdir}" in last.arguments


def test_cases_are_alternatives_and_an_empty_one_changes_nothing():
    found = runs(
        cases=["", "synthesis.l2=0", "synthesis.l2=0 synthesis.grid_factors=(2, 1)"]
    )
    assert [run.name for run in found] == ["base", "l2=0", "l2=0,grid_factors=2-1"]
    assert [dict(run.changes) for run in found] == [
        {},
        {"synthesis.l2": 0.0},
        {"synthesis.l2": 0.0, "synthesis.grid_factors": (2, 1)},
    ]
    assert found[2].settings.synthesis.grid_factors == (2, 1)


def test_seeds_alone_take_the_name_of_the_experiment():
    assert [run.name for run in runs(seeds=(0, 1))] == ["mnist_smoke"] * 2


def test_what_varies_takes_the_place_of_what_is_set_for_all():
    fixed = {"synthesis.grid_factors": "(2, 1)", "distillation.num_steps": "100"}
    found = runs("synthesis.grid_factors=(4,1),(1,)", fixed=fixed)
    assert [run.settings.synthesis.grid_factors for run in found] == [(4, 1), (1,)]
    assert {run.settings.distillation.num_steps for run in found} == {100}


def test_the_variant_of_the_config_varies_like_a_setting():
    found = runs("variant=default,smoke")
    assert [run.settings.name for run in found] == ["mnist", "mnist_smoke"]
    assert [run.name for run in found] == ["variant=default", "variant=smoke"]


def test_texts_with_commas_and_networks_with_arguments():
    [run] = runs("student.module='a.b:C'", fixed={"student.arguments": "{'width': 3}"})
    assert run.settings.student.module == "a.b:C"
    assert run.settings.student.arguments == {"width": 3}


def test_names_that_would_be_the_same_differ():
    found = runs("teacher.weights=a/b,a-b")
    assert len({run.name for run in found}) == 2
    assert all(run.name.startswith("weights=a-b-") for run in found)


def test_names_are_short_enough_for_a_folder():
    [run] = runs(f"teacher.weights={'x' * 200}")
    assert len(run.name) < 140


def test_keys_that_end_alike_are_written_out():
    found = runs("synthesis.temperature=1,2", "distillation.temperature=4")
    assert found[0].name == "synthesis.temperature=1,distillation.temperature=4"


def test_the_student_does_not_change_the_transfer_set():
    keys = {
        name: runs(name)[0].transfer_set
        for name in (
            "targets.sigma=3",
            "distillation.num_steps=5000",
            "student.network=lenet5",
            "synthesis.l2=1",
            "cpu_devices=1",
            "teacher.weights=other",
        )
    }
    base = runs()[0].transfer_set
    assert keys["distillation.num_steps=5000"] == base
    assert keys["student.network=lenet5"] == base
    different = set(keys.values())
    assert len(different) == 5
    assert runs(seeds=(1,))[0].transfer_set not in different | {base}
    assert runs(split="test")[0].transfer_set == base


@pytest.mark.parametrize(
    ("sets", "cases", "parts"),
    [
        (["sigma=1"], [], ["sigma is not a setting", '"targets.sigma"?']),
        (["targets.sigm=1"], [], ["targets.sigm is not", '"targets.sigma"?']),
        (["targets=1"], [], ["config.targets"]),
        (["targets.sigma"], [], ["--set=targets.sigma", "key=value"]),
        (["targets.sigma=1,zero"], [], ["config.targets.sigma=zero", "a number"]),
        (["targets.sigma=1,-1"], [], ["config.targets.sigma=-1.0", "from 0"]),
        (["targets.sigma=1,1.0"], [], ["targets.sigma=1 is given twice"]),
        (["targets.sigma="], [], ["config.targets.sigma="]),
        (["targets.sigma=1", "targets.sigma=2"], [], ["varied twice"]),
        (["targets.sigma=1"], ["", "targets.sigma=2"], ["varied twice"]),
        (["seed=1,2"], [], ["--seeds=0,1,2"]),
        (["data.split=test"], [], ["--split=validation"]),
        (["variant=nonsense"], [], ["no variant 'nonsense'"]),
        (
            ["synthesis.num_images=450"],
            [],
            ["config.synthesis.num_images=450", "multiple"],
        ),
        ([], ["targets.sigma"], ['--case="targets.sigma"', "key=value"]),
        ([], ["targets.sigma=1 targets.sigma=2"], ["each key once"]),
        ([], ["", ""], ["nothing changed is given twice"]),
    ],
)
def test_refused(sets, cases, parts):
    with pytest.raises(ConfigError) as error:
        runs(*sets, cases=cases)
    for part in parts:
        assert part in str(error.value)


def test_seed_and_split_for_all_runs_have_flags_of_their_own():
    with pytest.raises(ConfigError, match="--seeds=0,1,2"):
        runs(fixed={"seed": "1"})


def test_teacher_training_is_no_distillation():
    with pytest.raises(ConfigError, match="trains a teacher"):
        plan.plan(
            "configs/teachers/mnist.py",
            {},
            [],
            seeds=[0],
            split="test",
            workdir=pathlib.Path("x"),
        )


@pytest.mark.parametrize("text", ["", "a", "0,0", "1.5", "-1", "0,,1"])
def test_seeds_refused(text):
    with pytest.raises(ConfigError, match="--seeds="):
        plan.seeds(text)


def test_seeds_in_their_order():
    assert plan.seeds("2,0,1") == [2, 0, 1]
