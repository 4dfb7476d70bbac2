module queued/deploy

go 1.26.0
