"""One file per `ray job submit`: arguments -> config -> pipelines.X.run -> summary -> exit code."""
