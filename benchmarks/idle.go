package main

import (
	"os"
	"time"
)

func (s *suite) idle() error {
	began := time.Now()
	v, err := s.start()
	if err != nil {
		return err
	}
	fresh := time.Since(began)
	time.Sleep(10 * time.Second)
	rss := memory(v.cmd.Process.Pid)
	began = time.Now()
	other, err := s.startBeside(v)
	if err != nil {
		v.stop()
		return err
	}
	existing := time.Since(began)
	other.stop()
	v.stop()
	info, err := os.Stat(s.program)
	if err != nil {
		return err
	}
	s.write(`
## Idle server

| | measured | goal |
|---|---|---|
| memory | %d MB | under 25 |
| time to ready, existing database | %.2f s | within 1 |
| time to ready, new private PostgreSQL | %.2f s | within 6 |
| static binary | %d MB | under 20 |
`, rss>>20, existing.Seconds(), fresh.Seconds(), info.Size()>>20)
	return nil
}
