"""Mail, on Flask-Mail: its messages, settings and signal, with four backends and the application's own errors.

Building a message (``messages``) is apart from sending it (``Mailer.send``). A backend hands one message to one
recipient: ``smtp`` to a server, ``file`` to a Maildir, ``console`` to stdout, ``memory`` to a list.
"""

from app.mail.mailer import Mailer, init_app
from app.mail.messages import OrderNotification
from app.mail.smtp import reach

__all__ = ["Mailer", "OrderNotification", "init_app", "reach"]
