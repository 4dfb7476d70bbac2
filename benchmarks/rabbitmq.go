package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// rabbit is a RabbitMQ with a node and a port mapper (epmd) of its own.
type rabbit struct {
	cmd  *exec.Cmd
	url  string
	env  []string
	epmd string // port
}

// startRabbit starts Debian's rabbitmq-server on loopback, in a temporary folder.
func (s *suite) startRabbit() (*rabbit, error) {
	dir, err := os.MkdirTemp(s.dir, "rabbitmq-")
	if err != nil {
		return nil, err
	}
	var ports [3]string
	for i := range ports {
		address, err := freeAddress()
		if err != nil {
			return nil, err
		}
		ports[i] = strings.TrimPrefix(address, "127.0.0.1:")
	}
	address := "127.0.0.1:" + ports[0]
	r := &rabbit{url: "amqp://guest:guest@" + address, epmd: ports[1]}
	config := filepath.Join(dir, "rabbitmq.conf")
	if err := os.WriteFile(config, []byte("listeners.tcp.default = "+address+"\n"), 0o644); err != nil {
		return nil, err
	}
	// Without RABBITMQ_DIST_PORT it would be the node's port plus 20000, which can be more than 65535.
	r.env = append(os.Environ(), "HOME="+dir, "ERL_CRASH_DUMP="+filepath.Join(dir, "crash"), "ERL_EPMD_ADDRESS=127.0.0.1", "ERL_EPMD_PORT="+r.epmd,
		"RABBITMQ_NODENAME=queued-bench@localhost", "RABBITMQ_MNESIA_BASE="+dir, "RABBITMQ_LOG_BASE="+dir, "RABBITMQ_CONFIG_FILE="+config,
		"RABBITMQ_NODE_PORT="+ports[0], "RABBITMQ_DIST_PORT="+ports[2], "RABBITMQ_ENABLED_PLUGINS_FILE="+filepath.Join(dir, "plugins"))
	r.cmd = exec.Command("/usr/lib/rabbitmq/bin/rabbitmq-server")
	r.cmd.Env = r.env
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("rabbitmq-server (Debian's package of that name): %w", err)
	}
	for range 120 {
		time.Sleep(500 * time.Millisecond)
		if c, err := amqp.Dial(r.url); err == nil {
			c.Close()
			return r, nil
		}
	}
	r.stop()
	return nil, fmt.Errorf("RabbitMQ is not ready")
}

func (r *rabbit) stop() {
	stop := exec.Command("/usr/lib/rabbitmq/bin/rabbitmqctl", "shutdown")
	stop.Env = r.env
	if stop.Run() != nil {
		r.cmd.Process.Signal(os.Interrupt)
	}
	r.cmd.Wait()
	exec.Command("epmd", "-port", r.epmd, "-kill").Run()
}

// rabbitLoad is a load on a new queue of RabbitMQ, which is durable. Messages are
// persistent.
type rabbitLoad struct {
	queue     string // its type, classic or quorum
	producers int
	consumers int
	prefetch  int // maximum number of unacked messages of a consumer
}

// load publishes single messages with confirms, like queued bench, one at a time on each
// connection. Each consumer acks what it has received, up to the prefetch, in one ack. A
// producer waits while more than 1000 messages are not received yet. It returns messages
// per second.
func (r *rabbit) load(l rabbitLoad, d time.Duration) (published, acked float64, err error) {
	const queue = "bench"
	setup, err := amqp.Dial(r.url)
	if err != nil {
		return 0, 0, err
	}
	defer setup.Close()
	channel, err := setup.Channel()
	if err != nil {
		return 0, 0, err
	}
	if _, err := channel.QueueDeclare(queue, true, false, false, false, amqp.Table{"x-queue-type": l.queue}); err != nil {
		return 0, 0, err
	}
	defer channel.QueueDelete(queue, false, false, false)
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	var sent, received, done atomic.Int64
	var failed atomic.Value
	var wg sync.WaitGroup
	each := func(n int, work func(c *amqp.Channel) error) {
		for range n {
			wg.Go(func() {
				conn, err := amqp.Dial(r.url)
				if err == nil {
					defer conn.Close()
					var c *amqp.Channel
					if c, err = conn.Channel(); err == nil {
						err = work(c)
					}
				}
				if err != nil && ctx.Err() == nil {
					failed.Store(err)
				}
			})
		}
	}
	body := bytes.Repeat([]byte{'a'}, 200)
	each(l.producers, func(c *amqp.Channel) error {
		if err := c.Confirm(false); err != nil {
			return err
		}
		for ctx.Err() == nil {
			if l.consumers > 0 && sent.Load()-received.Load() > 1000 {
				time.Sleep(time.Millisecond)
				continue
			}
			confirm, err := c.PublishWithDeferredConfirmWithContext(ctx, "", queue, false, false, amqp.Publishing{DeliveryMode: amqp.Persistent, Body: body})
			if err != nil {
				return err
			}
			if ok, err := confirm.WaitContext(ctx); err != nil || !ok {
				return err
			}
			sent.Add(1)
		}
		return nil
	})
	each(l.consumers, func(c *amqp.Channel) error {
		if err := c.Qos(l.prefetch, 0, false); err != nil {
			return err
		}
		messages, err := c.ConsumeWithContext(ctx, queue, "", false, false, false, false, nil)
		if err != nil {
			return err
		}
		waiting := make(chan amqp.Delivery, l.prefetch)
		go func() { // ends with the connection
			defer close(waiting)
			for m := range messages {
				select {
				case waiting <- m:
				case <-ctx.Done():
				}
			}
		}()
		for m := range waiting {
			n := 1
			for more := true; more && n < l.prefetch; {
				select {
				case next, open := <-waiting:
					if more = open; open {
						m = next
						n++
					}
				default:
					more = false
				}
			}
			received.Add(int64(n))
			if err := m.Ack(true); err != nil {
				return err
			}
			done.Add(int64(n))
			if ctx.Err() != nil {
				return nil
			}
		}
		return nil
	})
	<-ctx.Done()
	published, acked = float64(sent.Load())/d.Seconds(), float64(done.Load())/d.Seconds()
	wg.Wait()
	if err, _ := failed.Load().(error); err != nil {
		return 0, 0, err
	}
	fmt.Fprintf(os.Stderr, "   rabbitmq %+v: published %.0f/s, acked %.0f/s\n", l, published, acked)
	return published, acked, nil
}

// besideRabbitMQ compares queued with RabbitMQ. When RabbitMQ has made something durable:
//
//   - Classic queue: a confirm of a persistent message is sent after it was persisted to disk
//     (https://www.rabbitmq.com/confirms.html, "When Will Published Messages Be Confirmed by
//     the Broker?"), or after it was consumed and acked before that
//     (https://www.rabbitmq.com/blog/2011/02/10/introducing-publisher-confirms). Acks go to
//     the journal of the queue's index, which is synced for confirms, or when the queue is
//     idle (rabbit_queue_index:sync/1).
//   - Quorum queue: all operations, acks too, go to a write-ahead log
//     (https://www.rabbitmq.com/quorum-queues.html, "Resource Use"), which is synced before
//     the Raft library Ra applies them (ra_log_wal.erl, wal_write_strategy). With one node
//     this node alone is the majority.
//   - Neither tells the consumer when its ack is durable: AMQP 0-9-1 has no response to it.
func (s *suite) besideRabbitMQ() error {
	v, err := s.start()
	if err != nil {
		return err
	}
	defer v.stop()
	r, err := s.startRabbit()
	if err != nil {
		return err
	}
	defer r.stop()
	version := "unknown"
	if out, err := exec.Command("dpkg-query", "-W", "-f", "${Version}", "rabbitmq-server").Output(); err == nil {
		version = string(out)
	}
	s.write(`
## Compared with RabbitMQ

RabbitMQ is Debian's package %s: one node, a durable queue and persistent messages of 200 bytes. Publishers wait for
the confirmation of each message. Consumers ack one by one with a prefetch of one; with a prefetch of 100, each ack is for all
messages that have arrived. "Receive 100" in queued is a receive of up to 100 messages that acks those of the one before; its
publishes are of single messages too. Each client has its own connection. The server that is not measured is idle.

In queued, a publish and an ack are on disk (committed, with fsync) when the response arrives. The column "on disk" tells when
they are in RabbitMQ. It has no response to an ack, so the consumer does not learn when its ack is on disk.

| clients | RabbitMQ | on disk | messages per second | queued | messages per second | ratio | goal | %s |
|---|---|---|---|---|---|---|---|---|---|
`, version, costColumns)
	const (
		confirmed = "publish: when confirmed"
		journaled = "publish: when confirmed, unless it was acked before; ack: with a later sync of the queue"
		logged    = "publish: when confirmed; ack: with the next sync of the log"
	)
	for _, clients := range []int{16, 64} {
		theirs := map[string]rabbitLoad{
			"publish":                      {"classic", clients, 0, 1},
			"cycle, classic, prefetch 1":   {"classic", clients, clients, 1},
			"cycle, classic, prefetch 100": {"classic", clients, clients, 100},
			"cycle, quorum, prefetch 1":    {"quorum", clients, clients, 1},
			"cycle, quorum, prefetch 100":  {"quorum", clients, clients, 100},
		}
		ours := map[string][]string{
			"publish":                   load(clients, 0, 1, s.seconds),
			"cycle":                     load(clients, clients, 1, s.seconds),
			"cycle with a separate ack": append(load(clients, clients, 1, s.seconds), "-settle", "separate"),
			"receive 100":               append(load(clients, clients, 1, s.seconds), "-limit", "100"),
		}
		goal := map[int]string{16: "0.8", 64: "0.85"}[clients]
		rows := []struct{ theirs, disk, ours, goal string }{
			{"publish", confirmed, "publish", ""},
			{"cycle, classic, prefetch 1", journaled, "cycle", goal},
			{"cycle, classic, prefetch 1", journaled, "cycle with a separate ack", ""},
			{"cycle, quorum, prefetch 1", logged, "cycle", "1"},
			{"cycle, classic, prefetch 100", journaled, "receive 100", "1"},
			{"cycle, quorum, prefetch 100", logged, "receive 100", "1"},
		}
		results := make([]struct {
			theirs, ours, ratio numbers
			costs               costs
		}, len(rows))
		for range s.rounds {
			theirRates, ourResults := map[string]float64{}, map[string]*result{}
			for i, row := range rows { // a load of several rows runs once
				if _, measured := theirRates[row.theirs]; !measured {
					l := theirs[row.theirs]
					published, acked, err := r.load(l, s.seconds)
					if err != nil {
						return err
					}
					theirRates[row.theirs] = acked
					if l.consumers == 0 {
						theirRates[row.theirs] = published
					}
				}
				if ourResults[row.ours] == nil {
					if ourResults[row.ours], err = v.bench(ours[row.ours]...); err != nil {
						return err
					}
				}
				a, b := theirRates[row.theirs], ourResults[row.ours]
				result := &results[i]
				result.theirs, result.ours, result.ratio = append(result.theirs, a), append(result.ours, b.rate), append(result.ratio, b.rate/a)
				result.costs.add(b)
			}
		}
		for i, row := range rows {
			shown := fmt.Sprintf("%d + %d", clients, clients)
			if theirs[row.theirs].consumers == 0 {
				shown = strconv.Itoa(clients)
			}
			m := results[i]
			s.write("| %s | %s | %s | %v | %s | %v | %v | %s | %v |\n", shown, row.theirs, row.disk, m.theirs, row.ours, m.ours, m.ratio, row.goal, m.costs)
			if clients == 64 {
				s.summarize(row.ours+", "+shown+" clients", m.ours.median(), "RabbitMQ ("+row.theirs+")", m.ratio.median())
			}
		}
	}
	return nil
}
