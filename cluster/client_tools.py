"""The HTTP API's tools from Python."""

from cluster.client_connection import Connection, Json, quoted


class ToolsApi:
    """`client.tools`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def all(self) -> Json:
        """The tools with the schemas of their arguments."""
        return self._connection.json("GET", "/v1/tools")

    def call(self, name: str, arguments: Json) -> Json:
        """Call a tool."""
        return self._connection.json("POST", f"/v1/tools/{quoted(name)}", {"arguments": arguments})

    def answer(self, question: str) -> Json:
        """Answer a question with tools."""
        return self._connection.json("POST", "/v1/knowledge/answer", {"question": question})
