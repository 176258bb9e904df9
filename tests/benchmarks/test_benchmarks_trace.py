"""One training step and one evaluation batch run through no more code than they did; the ceilings only ever fall."""

import re

import pytest

from benchmarks import trace

# functions and files; a row that got shorter lowers its ceiling. The first batch reads its images when they are encoded
CEILINGS = {
    "APEX": {trace.STEP: (30, 9), trace.FIRST: (58, 16), trace.LATER: (25, 11), trace.CACHED: (25, 11)},
    "CoOp": {trace.STEP: (27, 9), trace.FIRST: (72, 20), trace.LATER: (22, 9), trace.CACHED: (16, 7)},
}


@pytest.fixture(scope="module")
def found():
    return trace.trace(list(CEILINGS))


@pytest.mark.parametrize("name", CEILINGS)
def test_no_more_code_than_the_ceiling(found, name):
    for phase, ceiling in CEILINGS[name].items():
        functions = found[name][phase]
        counted = len(trace.names(functions)), len(trace.files(functions))
        assert counted[0] <= ceiling[0], (
            f"{name}, {phase}: {counted[0]} functions\n{trace.listing({name: found[name]})}"
        )
        assert counted[1] <= ceiling[1], f"{name}, {phase}: {counted[1]} files\n{trace.listing({name: found[name]})}"


@pytest.mark.parametrize("name", CEILINGS)
def test_a_step_is_counted_from_the_loop_to_the_learning_rate(found, name):
    called = {phase: {own.rpartition(".")[2] for _, own in functions} for phase, functions in found[name].items()}
    assert {"forward_backward", "parse_batch_train", "loss", "encode_image", "model_update", "step"} <= called[
        trace.STEP
    ]
    assert {"parse_batch_test", "model_inference", "logits", "text_features", "process"} <= called[trace.FIRST]
    assert {"parse_batch_test", "model_inference", "logits", "encode_image", "process"} <= called[trace.LATER]
    assert ("encode_image" in called[trace.CACHED]) == (name == "APEX"), "prompted images are always computed"
    assert {"run_epoch", "read_image"} <= called[trace.EPOCH]
    assert {"evaluation_batches", "evaluate", "make_record"} <= called[trace.REST]


def test_what_stands_in_a_function_is_not_counted_apart():
    def outer():
        yield from (number for number in [1])

    codes = [code for code in outer.__code__.co_consts if hasattr(code, "co_name")]
    assert "<genexpr>" in [code.co_name for code in codes]
    assert not any(trace.of_project(code) for code in codes)
    assert trace.of_project(outer.__code__)[1].endswith("outer")
    assert trace.of_project(re.match.__code__) is None


def test_table_and_list(found, monkeypatch, capsys):
    monkeypatch.setattr(trace, "trace", lambda trainers: {name: found[name] for name in trainers})
    assert trace.main(["--trainers", "CoOp", "--list"]) == 0
    shown = capsys.readouterr().out
    functions = found["CoOp"][trace.STEP]
    counts = len(trace.names(functions)), len(trace.files(functions)), len(functions)
    assert "| CoOp | training step | {} | {} | {} |".format(*counts) in shown
    assert "\nCoOp, training step:\n" in shown
    assert "MethodTrainer.forward_backward" in shown
