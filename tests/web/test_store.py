"""What the server remembers, and what it forgets."""

import threading

from minip2p.web.store import Shelf, new_id


def test_the_least_recently_used_is_forgotten():
    shelf = Shelf(2)
    a, b = shelf.add("a"), shelf.add("b")
    assert shelf.get(a) == "a"
    c = shelf.add("c")
    assert shelf.get(b) is None and shelf.get(a) == "a" and shelf.get(c) == "c" and len(shelf) == 2


def test_ids_are_long_and_differ():
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000 and all(len(name) == 16 for name in ids)  # 96 bits


def test_threads_may_share_a_shelf():
    shelf, held = Shelf(5), []

    def work():
        for n in range(300):
            held.append(shelf.get(shelf.add(n)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(shelf) == 5 and len(held) == 1200 and set(held) <= {None, *range(300)}
