"""The pool of worker processes: every case once and in order, and an end at the first error."""

import time
import warnings

import numpy as np
import pytest

from minip2p.errors import UnknownWords
from minip2p.evaluation.tiny_cases import held_out_scenes, measure_two_objects
from minip2p.evaluation.workers import CASES_PER_JOB, WorkerPool, run_share
from minip2p.tiny.judge import Judge


def failing(pipe, judge, number, case, steps):
    """A case that fails if its number is 0, and otherwise leaves a file that shows that it was begun."""
    if number == 0:
        raise ValueError("the first case fails")
    (case / str(number)).touch()
    time.sleep(0.2)
    return {}, []


def unknown_word(pipe, judge, number, case, steps):
    """A case with a word that the model does not know."""
    warnings.warn(UnknownWords("two", case), stacklevel=1)
    return {}, []


def test_cases_are_measured_once_each_and_in_order_and_an_error_stops_the_pool(model, tmp_path):
    """Seven cases are more than one share. Their numbers, which are their seeds, are their places in the list. Then, in
    the same processes, an error."""
    scenes = list(held_out_scenes(7, 2))
    assert len(scenes) > CASES_PER_JOB
    with pytest.raises(ValueError, match="first case"), WorkerPool(None, 1) as pool:
        results = pool.run_all(measure_two_objects, scenes)
        with warnings.catch_warnings(record=True) as caught:  # the parent process shows the warnings of the workers
            warnings.simplefilter("always")
            pool.run_all(unknown_word, ["cats", "dogs"])
        pool.run_all(failing, [tmp_path] * 60)
    assert [(warning.category, warning.message.args) for warning in caught] == [
        (UnknownWords, ("two", "cats")),
        (UnknownWords, ("two", "dogs")),
    ]
    assert len(list(tmp_path.iterdir())) < 40
    assert len(results) == 7
    judge = Judge.load()
    for number in (0, 6):
        figures, (image,) = measure_two_objects(model, judge, number, scenes[number], 1)
        assert results[number][0] == figures
        difference = np.asarray(results[number][1][0], int) - np.asarray(image, int)
        assert abs(difference).max() <= 1  # of 255: a worker runs one thread, this process perhaps several


def test_a_share_loads_the_model_once_and_keeps_the_numbers():
    calls = []

    def measure(pipe, judge, number, case, steps):
        calls.append((pipe, judge))
        return {"number": number, "steps": steps}, []

    results = run_share(measure, [(3, "a"), (4, "b")], None, 7)
    assert results == [({"number": 3, "steps": 7}, []), ({"number": 4, "steps": 7}, [])]
    assert calls[0] == calls[1]
