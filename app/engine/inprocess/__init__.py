"""The in-process engine: deliveries run in threads of this process."""
