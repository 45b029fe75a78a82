"""A route that stores nothing: what Flask and gunicorn cost on this machine."""

from flask import Flask, request

app = Flask(__name__)


@app.post("/api/create_order")
def create_order():
    given = request.get_json()
    return {"status": "success", "message": "订单创建成功", "order_id": str(given["order_id"])}, 201
