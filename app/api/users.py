"""Routes that read users' records."""

from flask.typing import ResponseReturnValue

from app.api.blueprint import blueprint
from app.api.operation import Operation, ResponseDoc
from app.api.response_models import UserView
from app.current import database
from app.errors import UserNotFound
from app.orders import find_user, is_identifier


@blueprint.get("/api/users/<user_id>")
@Operation(
    "Show a user's record",
    responses={
        200: ResponseDoc("the user's record, into which confirmed orders are counted", UserView),
        404: ResponseDoc("there is no such user", detail="there is no user 42"),
    },
)
def show_user(user_id: str) -> ResponseReturnValue:
    """The record runs behind the orders by as much as the receivers do: usually by milliseconds."""
    if not is_identifier(user_id):
        raise UserNotFound
    with database().read() as session:
        return UserView.serialize(find_user(session, user_id))
