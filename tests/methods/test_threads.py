import threading
import time

import pytest
import torch

from tipmini.masks import in_threads


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 50])
def test_results_are_in_the_order_of_the_items(count):
    assert in_threads(lambda i: i * i, range(count)) == [i * i for i in range(count)]


def test_work_is_done_at_once_each_with_one_thread_of_torch():
    met = threading.Barrier(3, timeout=60)  # breaks unless three come together

    def meet(_: int) -> tuple[int, bool]:
        met.wait()
        return torch.get_num_threads(), torch.is_grad_enabled()

    with torch.no_grad():
        assert in_threads(meet, range(3)) == [(1, False)] * 3


def test_with_one_thread_the_caller_does_the_work():
    torch.set_num_threads(1)
    assert set(in_threads(lambda _: threading.get_ident(), range(5))) == {threading.get_ident()}


def test_torchs_threads_are_as_many_as_before_here_and_in_threads_to_come():
    in_threads(str, range(5))
    seen = [torch.get_num_threads()]
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start(), later.join()
    assert seen == [3, 3]


def test_an_error_is_raised_where_the_work_was_asked_for():
    def fail(i: int) -> None:
        if i == 7:
            raise ValueError("the eighth")

    with pytest.raises(ValueError, match="the eighth"):
        in_threads(fail, range(20))
    assert torch.get_num_threads() == 3


def test_after_an_error_nothing_more_is_begun():
    begun = []

    def fail(i: int) -> None:
        begun.append(i)
        if i == 0:
            raise ValueError("the first")
        time.sleep(0.05)

    with pytest.raises(ValueError, match="the first"):
        in_threads(fail, range(100))
    assert len(begun) < 20


def test_inference_mode_goes_into_the_threads():
    with torch.inference_mode():
        assert in_threads(lambda _: torch.is_inference_mode_enabled(), range(5)) == [True] * 5
    assert in_threads(lambda _: torch.is_inference_mode_enabled(), range(5)) == [False] * 5


def test_a_call_in_a_thread_waits_and_leaves_the_number_of_threads():
    calls = [threading.Thread(target=in_threads, args=(str, range(40))) for _ in range(4)]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    assert torch.get_num_threads() == 3
