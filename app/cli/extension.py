"""Flask extension: ``init_app`` adds the commands to an application."""

from flask import Flask

from app.cli import acts, deliveries, move, policy, receivers
from app.cli.bus import bus_group
from app.cli.db import db_group
from app.cli.doctor import doctor_command
from app.cli.orders import orders_group
from app.cli.users import users_group

BUS_COMMANDS = (deliveries, acts, receivers, policy, move)
"""The modules that add commands to the bus group when they are imported."""

COMMANDS = (bus_group, orders_group, users_group, db_group, doctor_command)


def init_app(app: Flask) -> None:
    for command in COMMANDS:
        app.cli.add_command(command)
