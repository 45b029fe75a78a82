"""A broker carries deliveries to Celery's workers. The outbox stays the truth: a message that is lost costs time."""
