"""Answers to an order or a message: the base's restatement and those of the three adapters."""

import json

from training.shop.messages import Message
from training.shop.orders import Order

SQL_TABLE = "orders"
SQL_COLUMNS = ("qty", "style", "item", "city", "day", "gift", "express")

_REGRETS = {
    "not arrived": "We are sorry that it has not arrived. We will trace the parcel today.",
    "broken": "We are sorry that it is broken. We will exchange it for free today.",
    "wrong item": "We are sorry that we sent the wrong item. We will exchange it for free.",
    "missing part": "We are sorry that a part is missing. We will post it today.",
    "refund": "We are sorry that you were not happy. We will send the refund this week.",
    "cancel": "We are sorry that you cancel. We will cancel it right away.",
}


def restate_order(order: Order) -> str:
    """Restate an order in plain words, always in the same form: the base's answer."""
    lines = ", ".join(f"{line.quantity} {line.style} {line.noun}" for line in order.lines)
    gift, express = ("yes" if flag else "no" for flag in (order.gift, order.express))
    return (
        f"Order: {lines}. Ship to {order.city} by {order.day or 'any day'}. "
        f"Gift wrap: {gift}. Express: {express}."
    )


def restate_message(message: Message) -> str:
    """Say a message in plain words, always in the same form: the base's own answer."""
    return (
        f"Message from {message.name or 'a customer'} about order {message.reference}: "
        f"{_name_pieces(message)}. Problem: {message.problem}."
    )


def order_json(order: Order) -> str:
    """Write an order as compact JSON with a fixed key order."""
    document = {
        "items": [
            {"qty": line.quantity, "style": line.style, "item": line.noun} for line in order.lines
        ],
        "city": order.city,
        "day": order.day,
        "gift": order.gift,
        "express": order.express,
    }
    return json.dumps(document, separators=(",", ":"))


def order_sql(order: Order) -> str:
    """Write an order as one INSERT statement with a row for each line."""
    day = f"'{order.day}'" if order.day else "NULL"
    tail = f"'{order.city}', {day}, {int(order.gift)}, {int(order.express)}"
    rows = ", ".join(
        f"({line.quantity}, '{line.style}', '{line.noun}', {tail})" for line in order.lines
    )
    return f"INSERT INTO {SQL_TABLE} ({', '.join(SQL_COLUMNS)}) VALUES {rows};"


def message_reply(message: Message) -> str:
    """Answer a message politely, naming the order, the pieces and the problem."""
    return (
        f"Dear {message.name or 'customer'}, thank you for writing about order "
        f"{message.reference}, {_name_pieces(message)}: {message.problem}. "
        f"{_REGRETS[message.problem]}"
    )


def _name_pieces(message: Message) -> str:
    return " and ".join(f"{style} {noun}" for style, noun in message.pieces)
