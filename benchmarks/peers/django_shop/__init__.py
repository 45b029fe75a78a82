"""The shop in Django, with django-domain-events: the same route, tables and mail."""
