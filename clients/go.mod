module queued/clients

go 1.26.0
