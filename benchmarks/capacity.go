package main

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// stored is a kind of message whose space is measured.
type stored struct {
	what     string
	bytes    int    // of data
	members  string // further members in JSON; %d is the number of the message
	messages int
}

// capacity measures what a message takes in the database and in the write-ahead log.
func (s *suite) capacity() error {
	s.write(`
## Capacity

Messages are published in batches of 100 by 8 clients, and then received and acked in batches of 100 by 8 clients. Their data is text
that does not compress. *On disk* are the tables with their indexes after the publishes, divided by the messages; *WAL* are the bytes
of PostgreSQL's write-ahead log for each message, with the pages that it writes whole after a checkpoint. *Left* is the size of the
tables and indexes after a VACUUM at the end. PostgreSQL fills this space with the next messages.

| messages | number | on disk, bytes per message | WAL of the publish | WAL of the receive and the ack | left |
|---|---|---|---|---|---|
`)
	for _, k := range []stored{
		{"200 bytes", 200, "", 50_000},
		{"200 bytes, one of 1,000 groups", 200, `,"group":"%d"`, 50_000},
		{"200 bytes, deduplication id", 200, `,"deduplication_id":"%d"`, 50_000},
		{"1 KiB", 1 << 10, "", 20_000},
		{"10 KiB", 10 << 10, "", 5_000},
	} {
		v, err := s.start()
		if err != nil {
			return err
		}
		row, err := v.capacityOf(k)
		v.stop()
		if err != nil {
			return err
		}
		s.write("| %s | %s |\n", k.what, row)
	}
	return nil
}

// capacityOf returns the cells of a table for one kind of message.
func (v *server) capacityOf(k stored) (row string, err error) {
	if err := v.mustQueue("q"); err != nil {
		return "", err
	}
	const clients, batch = 8, 100
	// Each client calls step until it returns false.
	inParallel := func(step func() (bool, error)) error {
		errs := make([]error, clients)
		var all sync.WaitGroup
		for i := range clients {
			all.Go(func() {
				for more := true; more && errs[i] == nil && v.s.ctx.Err() == nil; {
					more, errs[i] = step()
				}
			})
		}
		all.Wait()
		return errors.Join(append(errs, v.s.ctx.Err())...)
	}
	size := func() (float64, error) {
		text, err := v.sql("SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relnamespace = 'queued'::regnamespace AND relkind = 'r'")
		if err != nil {
			return 0, err
		}
		return strconv.ParseFloat(text, 64)
	}
	empty, err := size()
	if err != nil {
		return "", err
	}
	var costs [3]cost // before the publishes, after them, at the end
	if costs[0], err = v.cost(); err != nil {
		return "", err
	}
	var next, acked atomic.Int64
	err = inParallel(func() (bool, error) {
		first := int(next.Add(batch)) - batch
		if first >= k.messages {
			return false, nil
		}
		var body strings.Builder
		body.WriteString(`{"messages":[`)
		for i := range batch {
			if i > 0 {
				body.WriteByte(',')
			}
			text := make([]byte, k.bytes/2)
			rand.Read(text)
			fmt.Fprintf(&body, `{"data":{"text":%q}`, hex.EncodeToString(text)[:k.bytes-len(`{"text":""}`)])
			if k.members != "" {
				n := first + i
				if strings.Contains(k.members, "group") {
					n %= 1000
				}
				fmt.Fprintf(&body, k.members, n)
			}
			body.WriteByte('}')
		}
		body.WriteString("]}")
		status, response, err := request(http.DefaultClient, "POST", v.url+"/queues/q/messages/batch", body.String())
		if err == nil && status != http.StatusCreated {
			err = fmt.Errorf("publish: %d %s", status, response)
		}
		return true, err
	})
	if err != nil {
		return "", err
	}
	full, err := size()
	if err != nil {
		return "", err
	}
	if costs[1], err = v.cost(); err != nil {
		return "", err
	}
	err = inParallel(func() (bool, error) {
		status, response, err := request(http.DefaultClient, "POST", v.url+"/queues/q/messages/receive", `{"limit":100}`)
		if err != nil || status != http.StatusOK {
			return false, fmt.Errorf("receive: %d %s, %w", status, response, err)
		}
		var received struct{ Data []struct{ ID string } }
		if err := json.Unmarshal(response, &received); err != nil {
			return false, err
		}
		if len(received.Data) == 0 {
			return acked.Load() < int64(k.messages), nil
		}
		ids := make([]string, len(received.Data))
		for i, m := range received.Data {
			ids[i] = m.ID
		}
		body, err := json.Marshal(map[string]any{"ids": ids})
		if err != nil {
			return false, err
		}
		status, response, err = request(http.DefaultClient, "PUT", v.url+"/messages/ack", string(body))
		if err != nil || status != http.StatusNoContent {
			return false, fmt.Errorf("ack: %d %s, %w", status, response, err)
		}
		acked.Add(int64(len(ids)))
		return true, nil
	})
	if err != nil {
		return "", err
	}
	if costs[2], err = v.cost(); err != nil {
		return "", err
	}
	for _, table := range []string{"messages", "groups", "deduplications"} {
		if _, err := v.sql("VACUUM queued." + table); err != nil {
			return "", err
		}
	}
	left, err := size()
	if err != nil {
		return "", err
	}
	n := float64(k.messages)
	return fmt.Sprintf("%s | %.0f | %.0f | %.0f | %.0f MB", thousands(n), (full-empty)/n,
		costs[1].since(costs[0]).wal/n, costs[2].since(costs[1]).wal/n, left/1e6), nil
}
