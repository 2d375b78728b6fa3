"""What the server remembers, and what it forgets."""

import threading

from minip2p.web.store import Shelf, new_id


def test_the_least_recently_used_is_forgotten():
    shelf = Shelf(2)
    a, b = shelf.add("a"), shelf.add("b")
    assert shelf.get(a) == "a"
    c = shelf.add("c")
    assert shelf.get(b) is None and shelf.get(a) == "a" and shelf.get(c) == "c" and len(shelf) == 2


def test_what_is_in_use_is_not_forgotten():
    shelf = Shelf(1)
    a = shelf.add("a")
    shelf.hold(a)
    shelf.hold(a)
    b = shelf.add("b")
    shelf.release(a)
    assert shelf.get(a) == "a" and shelf.get(b) == "b"
    shelf.release(a)
    assert len(shelf) == 1 and shelf.get(a) is None  # b was used last
    shelf.add("new", "name")
    assert shelf.get("name") == "new" and len(shelf) == 1


def test_the_newest_stays_although_all_others_are_in_use():
    shelf = Shelf(1)
    a = shelf.add("a")
    shelf.hold(a)
    assert shelf.get(shelf.add("b")) == "b"


def test_ids_are_long_and_differ():
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000 and all(len(name) == 16 for name in ids)  # 96 bits


def test_threads_may_share_a_shelf():
    shelf, held = Shelf(5), []

    def work():
        for n in range(300):
            name = shelf.add(n)
            shelf.hold(name)
            held.append(shelf.get(name) is not None)
            shelf.release(name)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(shelf) == 5 and not shelf.uses and len(held) == 1200
