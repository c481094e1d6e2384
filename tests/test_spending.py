import pytest

from retrodistill.core.errors import UserError
from retrodistill.core.spending import Spending, Spent, read_ledger, spend

PAID = Spent(requests=1, tokens=7)


class TestALedgerThatCannotBeWritten:
    @pytest.fixture
    def blocked(self, tmp_path):
        """A ledger below a file, which is a folder once the file is removed."""
        (tmp_path / "job").write_text("")
        return tmp_path / "job" / "spending.jsonl"

    def test_an_answer_is_kept_and_no_further_request_is_sent(self, blocked):
        spending = Spending(ledger=None)
        spending.ledger = blocked
        spending.reserve("a", None)
        spending.settle("a", None, PAID)
        with pytest.raises(UserError, match=rf"cannot write {blocked}: "):
            spending.reserve("a", None)
        blocked.parent.unlink()
        spending.reserve("a", None)
        assert read_ledger(blocked)["a"] == PAID

    def test_is_said_at_the_end(self, blocked):
        def pay():
            with spend() as spending:
                spending.ledger = blocked
                spending.settle("a", None, PAID)

        with pytest.raises(UserError, match=f"cannot write {blocked}"):
            pay()


def test_a_line_that_a_full_disk_has_cut_spoils_no_other(tmp_path):
    ledger = tmp_path / "spending.jsonl"
    Spending(ledger=ledger).settle("a", None, PAID)
    whole = ledger.read_text()
    ledger.write_text(whole + whole[:10])
    Spending(ledger=ledger).settle("a", None, PAID)
    assert read_ledger(ledger)["a"].tokens == 14
