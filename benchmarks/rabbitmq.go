package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// rabbit is a RabbitMQ with a node of its own.
type rabbit struct {
	cmd *exec.Cmd
	url string
	env []string
}

// startRabbit starts Debian's rabbitmq-server on loopback, in a temporary folder.
func (s *suite) startRabbit() (*rabbit, error) {
	dir, err := os.MkdirTemp(s.dir, "rabbitmq-")
	if err != nil {
		return nil, err
	}
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	port := address[len("127.0.0.1:"):]
	r := &rabbit{url: "amqp://guest:guest@" + address}
	config := filepath.Join(dir, "rabbitmq.conf")
	if err := os.WriteFile(config, []byte("listeners.tcp.default = "+address+"\n"), 0o644); err != nil {
		return nil, err
	}
	r.env = append(os.Environ(), "HOME="+dir, "RABBITMQ_NODENAME=queued-bench@localhost", "RABBITMQ_MNESIA_BASE="+dir, "RABBITMQ_LOG_BASE="+dir,
		"RABBITMQ_CONFIG_FILE="+config, "RABBITMQ_NODE_PORT="+port, "RABBITMQ_ENABLED_PLUGINS_FILE="+filepath.Join(dir, "plugins"))
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
}

// load publishes with confirms and consumes with acks, one message at a time on each
// connection, like queued bench. The queue is durable, and messages are persistent. A
// producer waits while more than 1000 messages are not consumed yet.
func (r *rabbit) load(producers, consumers, size int, d time.Duration) (published, acked float64, err error) {
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
	if _, err := channel.QueueDeclare(queue, true, false, false, false, nil); err != nil {
		return 0, 0, err
	}
	defer channel.QueueDelete(queue, false, false, false)
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	var sent, done atomic.Int64
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
	body := bytes.Repeat([]byte{'a'}, size)
	each(producers, func(c *amqp.Channel) error {
		if err := c.Confirm(false); err != nil {
			return err
		}
		for ctx.Err() == nil {
			if consumers > 0 && sent.Load()-done.Load() > 1000 {
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
	each(consumers, func(c *amqp.Channel) error {
		if err := c.Qos(1, 0, false); err != nil {
			return err
		}
		messages, err := c.ConsumeWithContext(ctx, queue, "", false, false, false, false, nil)
		if err != nil {
			return err
		}
		for m := range messages {
			if err := m.Ack(false); err != nil {
				return err
			}
			done.Add(1)
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
	fmt.Fprintln(os.Stderr, "   rabbitmq", strconv.Itoa(producers), strconv.Itoa(consumers), int(published), int(acked))
	return published, acked, nil
}

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

RabbitMQ is Debian's package %s, with a durable queue and persistent messages of 200 bytes. Publishers wait for the
confirmation of each message. Consumers have a prefetch of one and ack each message. Each client has its own connection. Figures
are messages per second; the server that is not measured is idle.

| load | clients | RabbitMQ | queued | ratio |
|---|---|---|---|---|
`, version)
	for _, clients := range []int{16, 64} {
		for _, consumers := range []int{0, clients} {
			var theirs, ours, ratio numbers
			for range s.rounds {
				published, acked, err := r.load(clients, consumers, 200, s.seconds)
				if err != nil {
					return err
				}
				b, err := s.bench(v.url, load(clients, consumers, 1, s.seconds)...)
				if err != nil {
					return err
				}
				if consumers > 0 {
					theirs, ours, ratio = append(theirs, acked), append(ours, b.Acked), append(ratio, b.Acked/acked)
				} else {
					theirs, ours, ratio = append(theirs, published), append(ours, b.Published), append(ratio, b.Published/published)
				}
			}
			what, shown := "publish", strconv.Itoa(clients)
			if consumers > 0 {
				what, shown = "publish, receive one, ack one", fmt.Sprintf("%d + %d", clients, clients)
			}
			s.write("| %s | %s | %v | %v | %v |\n", what, shown, theirs, ours, ratio)
		}
	}
	return nil
}
