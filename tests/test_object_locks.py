"""Runs in object storage, held by a lock of our own: against others, while asleep, and through faults."""

import threading

import pytest
from stored import make_run, rows_of_trial, write

from rresnet.tables import objects, place, reading, runs
from rresnet.tables.place import StoreError
from rresnet.tables.store import Writer


@pytest.fixture
def quick(monkeypatch):
    """Locks that beat, and are given up, in a fraction of a second."""
    monkeypatch.setattr(objects, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(objects, "DEAD_SECONDS", 3.0)


def test_two_commands_never_continue_one_run_at_once(url, quick):
    first, told = Writer(url, make_run()), []
    with pytest.raises(StoreError, match=r"another process is working on run r1 in s3://.*--fresh"):
        Writer(url, make_run(), told.append)
    assert "waiting 3 s to be sure" in told[0]
    first.write(*rows_of_trial(first.run, 0))
    first.flush()
    first.close()
    Writer(url, make_run()).close()
    assert len(reading.read_tables(url)["trials"]) == 1
    assert place.at(url).names("runs") == ["r1.json"]


def test_of_two_commands_at_the_same_moment_at_most_one_gets_the_run(url, quick, monkeypatch):
    both, others, looked, told = threading.Barrier(2, timeout=20), objects._Beat._others, set(), []

    def look(hold):
        if hold not in looked:
            looked.add(hold)
            both.wait()  # each has written its lock before either looks
        return others(hold)

    monkeypatch.setattr(objects._Beat, "_others", look)

    def start():
        try:
            Writer(url, make_run()).close()
        except StoreError as error:
            told.append(str(error))

    commands = [threading.Thread(target=start) for _ in range(2)]
    for one in commands:
        one.start()
    for one in commands:
        one.join()
    assert told
    assert [text for text in told if "another process is working on run r1" not in text] == []
    assert [name for name in place.at(url).names("runs") if name.endswith(".lock")] == []


def test_the_run_of_a_killed_process_is_taken_over_and_it_can_write_no_more(url, quick):
    slept = Writer(url, make_run())
    slept.write(*rows_of_trial(slept.run, 0))
    slept.flush()
    slept._hold._closed.set()  # as if the process, or its machine, were asleep: no more beats
    slept._hold._thread.join()
    with Writer(url, make_run()) as writer:
        writer.write(*rows_of_trial(writer.run, 1))
    slept._hold._alive_at -= objects.DEAD_SECONDS  # and wakes up later
    slept.write(*rows_of_trial(slept.run, 2))
    with pytest.raises(StoreError, match="another process took over run r1"):
        slept.flush()
    slept.close()
    assert sorted(row["repeat"] for row in reading.read_tables(url)["trials"].to_pylist()) == [0, 1]


def test_a_process_whose_beat_was_refused_for_long_writes_no_more_beside_the_one_that_took_over(
    url, quick, monkeypatch
):
    held_up = Writer(url, make_run())
    try:
        whole, refused, accepted = objects._Objects.write, threading.Event(), threading.Event()

        def write_late(self, name, content, *check):
            if name.startswith(f"runs/{held_up._hold._own}") and not refused.is_set():
                refused.set()
                accepted.wait(60)  # as long as an object store asks for patience
            whole(self, name, content, *check)

        monkeypatch.setattr(objects._Objects, "write", write_late)
        assert refused.wait(20)
        write(url, 0)  # takes over meanwhile, and is gone again
        accepted.set()
        with pytest.raises(StoreError, match="another process took over run r1"):
            write_one(held_up)
    finally:
        accepted.set()
        held_up.close()
    assert [row["repeat"] for row in reading.read_tables(url)["trials"].to_pylist()] == [0]
    assert place.at(url).names("runs") == ["r1.json"]


def test_a_process_that_puts_up_its_lock_while_it_is_taken_for_dead_keeps_the_run(url, quick, monkeypatch):
    asleep = Writer(url, make_run())
    asleep._hold._closed.set()  # no more beats by itself
    asleep._hold._thread.join()
    remove, awake = objects._Objects.remove, []

    def remove_late(self, name):
        if name == asleep._hold._name(0) and not awake:
            awake.append(1)
            asleep._hold._beat()  # between the last look at it and its removal
        remove(self, name)

    monkeypatch.setattr(objects._Objects, "remove", remove_late)
    with pytest.raises(StoreError, match="another process is working on run r1"):
        Writer(url, make_run())
    write_one(asleep)
    asleep.close()
    assert [row["repeat"] for row in reading.read_tables(url)["trials"].to_pylist()] == [1]


def test_a_beat_that_fails_midway_is_made_up_for(url, quick, monkeypatch):
    held = Writer(url, make_run())
    held._hold._closed.set()
    held._hold._thread.join()
    remove, fails = objects._Objects.remove, iter([OSError("AWS Error NETWORK_CONNECTION during")])

    def remove_once(self, name):
        for fault in fails:
            raise fault
        remove(self, name)

    monkeypatch.setattr(objects._Objects, "remove", remove_once)
    with pytest.raises(OSError, match="NETWORK_CONNECTION"):
        held._hold._beat()
    held._hold._beat()
    write_one(held)
    held.close()
    assert place.at(url).names("runs") == ["r1.json"]


def write_one(writer):
    writer.write(*rows_of_trial(writer.run, 1, images_per_second=1.0))
    writer.flush()


def test_a_process_that_slept_within_a_write_asks_before_each_upload(url, quick, monkeypatch):
    slept, whole, asleep, awake = Writer(url, make_run()), objects._Objects.write, threading.Event(), threading.Event()

    def write_late(self, name, content, *check):
        if name.startswith("windows/") and not asleep.is_set():
            asleep.set()
            awake.wait(60)
            slept._hold._alive_at -= objects.DEAD_SECONDS
        whole(self, name, content, *check)

    monkeypatch.setattr(objects._Objects, "write", write_late)
    slept.write(*rows_of_trial(slept.run, 1))
    assert asleep.wait(20)
    slept._hold._closed.set()
    slept._hold._thread.join()
    write(url, 2, 3)  # takes over meanwhile, and ends
    awake.set()
    with pytest.raises(StoreError, match="another process took over run r1"):
        slept.flush()
    with pytest.raises(StoreError, match="another process took over run r1"):
        slept.finish("2026-01-01")
    slept.close()
    assert sorted(row["repeat"] for row in reading.read_tables(url)["trials"].to_pylist()) == [2, 3]
    assert [run.finished_at for run in runs.read_runs(url)] == [None]


def test_a_run_that_can_not_be_opened_is_not_left_locked(url, monkeypatch):
    def interrupted(self, run):
        raise KeyboardInterrupt

    monkeypatch.setattr(Writer, "_write_manifest", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Writer(url, make_run())
    assert place.at(url).names("runs") == []
