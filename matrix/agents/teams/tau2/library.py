"""The library domain: a lending desk with members, books and loans. Small, and part of matrix: for demos and tests."""

from __future__ import annotations

from datetime import date, timedelta

from matrix.agents.teams.tau2.database import Record
from matrix.agents.teams.tau2.kit import ToolError, Toolkit, reads, writes

_MORE_DAYS = 14
_MOST_RENEWALS = 2


class LibraryTools(Toolkit):
    """The agent's side."""

    tables = ("members", "books", "loans")

    @reads
    def find_member(self, email: str) -> Record:
        """Find a member by email.

        Args:
            email: The member's address.
        """
        for _, member in self.db.items("members"):
            if member["email"].lower() == email.lower():
                return member
        raise ToolError("Member not found")

    @reads
    def get_loan(self, loan_id: str) -> Record:
        """Get a loan with its due date.

        Args:
            loan_id: The loan, such as 'L1'.
        """
        return self._loan(loan_id)

    @reads
    def find_books(self, words: str) -> list[Record]:
        """Find books by words of title or author.

        Args:
            words: What the title or the author's name contains.
        """
        wanted = words.lower()
        return [book for _, book in self.db.items("books") if wanted in f"{book['title']} {book['author']}".lower()]

    @writes
    def renew_loan(self, loan_id: str) -> Record:
        """Make a loan due 14 days later. Gives the loan.

        Args:
            loan_id: The loan, such as 'L1'.
        """
        loan = self._loan(loan_id)
        if loan["renewals"] >= _MOST_RENEWALS:
            raise ToolError("The loan was renewed twice already")
        if self._book(loan["book_id"])["reserved_by"]:
            raise ToolError("The book is reserved by another member")
        loan = self.db.edit("loans", loan_id)
        loan["due"] = (date.fromisoformat(loan["due"]) + timedelta(days=_MORE_DAYS)).isoformat()
        loan["renewals"] += 1
        return loan

    @writes
    def reserve_book(self, member_id: str, book_id: str) -> Record:
        """Reserve a book for a member. Gives the book.

        Args:
            member_id: The member, such as 'M1'.
            book_id: The book, such as 'B1'.
        """
        if self.db.find("members", member_id) is None:
            raise ToolError("Member not found")
        if member_id in self._book(book_id)["reserved_by"]:
            raise ToolError("The member has reserved it already")
        book = self.db.edit("books", book_id)
        book["reserved_by"].append(member_id)
        return book

    @reads
    def transfer_to_human_agents(self, summary: str) -> str:
        """Hand the member over to a librarian, when the policy doesn't let you help.

        Args:
            summary: What the member wants.
        """
        del summary
        return "Transfer successful"

    def assert_due(self, loan_id: str, expected_due: str) -> bool:
        """Whether a loan is due on that day."""
        return bool(self._loan(loan_id)["due"] == expected_due)

    def _loan(self, loan_id: str) -> Record:
        loan = self.db.find("loans", loan_id)
        if loan is None:
            raise ToolError("Loan not found")
        return loan

    def _book(self, book_id: str) -> Record:
        book = self.db.find("books", book_id)
        if book is None:
            raise ToolError("Book not found")
        return book
