"""Jobs of the service: the database and its tables, a job as a row, ids, events for webhooks, and whose job is next."""
