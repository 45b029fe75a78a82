"""The two records, in tables like those of the other peers."""

from django.db import models


class Order(models.Model):
    order_id = models.CharField(max_length=64, primary_key=True)
    user_id = models.CharField(max_length=64, db_index=True)
    total_price = models.DecimalField(max_digits=20, decimal_places=2)
    status = models.CharField(max_length=16, default="created")
    notification = models.CharField(max_length=16, default="pending")
    created_at = models.DateTimeField()

    class Meta:
        db_table = "orders"


class User(models.Model):
    user_id = models.CharField(max_length=64, primary_key=True)
    orders_count = models.IntegerField(default=0)
    total_spent = models.DecimalField(max_digits=20, decimal_places=2, default=0)

    class Meta:
        db_table = "users"
