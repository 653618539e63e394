"""The database of the service: its tables, a job as a row, events that webhooks tell, and whose job is next."""
