"""The mock domain: tasks of users, and a user with an inbox of notifications."""

from __future__ import annotations

from typing import Literal

from matrix.agents.teams.tau2.database import Record
from matrix.agents.teams.tau2.kit import ToolError, Toolkit, reads, writes


class MockTools(Toolkit):
    """The agent's side."""

    tables = ("tasks", "users")

    @classmethod
    def whole(cls, table: str, record: Record) -> Record:
        """Tasks without a description have an empty one."""
        if table != "tasks":
            return record
        return {name: record.get(name) for name in ("task_id", "title", "description", "status")}

    @writes
    def create_task(self, user_id: str, title: str, description: str | None = None) -> Record:
        """Create a task for a user.

        Args:
            user_id: ID of the user who creates the task.
            title: Title of the task.
            description: What the task is about, if there is more to say.
        """
        if self.db.find("users", user_id) is None:
            raise ToolError(f"User {user_id} not found")
        task_id = f"task_{self.db.count('tasks') + 1}"
        task = {"task_id": task_id, "title": title, "description": description, "status": "pending"}
        self.db.put("tasks", task_id, task)
        self.db.edit("users", user_id)["tasks"].append(task_id)
        return task

    @reads
    def get_users(self) -> list[Record]:
        """Get all users."""
        return [user for _, user in self.db.items("users")]

    @writes
    def update_task_status(self, task_id: str, status: Literal["pending", "completed"]) -> Record:
        """Set the status of a task.

        Args:
            task_id: ID of the task.
            status: Its new status.
        """
        self._task(task_id)
        task = self.db.edit("tasks", task_id)
        task["status"] = status
        return task

    @reads
    def transfer_to_human_agents(self, summary: str) -> str:
        """Hand the user over to a human agent. Only if the user asks for one, or policy and tools don't allow to help.

        Args:
            summary: Summary of what the user wants.
        """
        del summary
        return "Transfer successful"

    def assert_number_of_tasks(self, user_id: str, expected_number: int) -> bool:
        """Whether a user has so many tasks."""
        user = self.db.find("users", user_id)
        if user is None:
            raise ToolError(f"User {user_id} not found")
        return len(user["tasks"]) == expected_number

    def assert_task_status(self, task_id: str, expected_status: str) -> bool:
        """Whether a task has that status."""
        return bool(self._task(task_id)["status"] == expected_status)

    def _task(self, task_id: str) -> Record:
        task = self.db.find("tasks", task_id)
        if task is None:
            raise ToolError(f"Task {task_id} not found")
        return task


class MockUserTools(Toolkit):
    """The user's side."""

    tables = ("notifications",)

    @classmethod
    def whole(cls, table: str, record: Record) -> Record:
        """Notifications are unread, and of no task, unless they say so."""
        del table
        return {"notification_id": None, "message": None, "status": "unread", "task_id": None, **record}

    @reads
    def check_notifications(self) -> list[Record]:
        """Look at all notifications in your inbox."""
        return [notification for _, notification in self.db.items("notifications")]

    @writes
    def dismiss_notification(self, notification_id: str) -> str:
        """Dismiss a notification: mark it as read.

        Args:
            notification_id: ID of the notification.
        """
        self._notification(notification_id)
        self.db.edit("notifications", notification_id)["status"] = "read"
        return f"Notification {notification_id} dismissed"

    def add_notification(self, notification_id: str, message: str, task_id: str | None = None) -> Record:
        """Put a notification into the inbox."""
        added = {"notification_id": notification_id, "message": message, "status": "unread", "task_id": task_id}
        self.db.put("notifications", notification_id, added)
        return added

    def assert_notification_status(self, notification_id: str, expected_status: str) -> bool:
        """Whether a notification has that status."""
        return bool(self._notification(notification_id)["status"] == expected_status)

    def _notification(self, notification_id: str) -> Record:
        found = self.db.find("notifications", notification_id)
        if found is None:
            raise ToolError(f"Notification {notification_id} not found")
        return found
