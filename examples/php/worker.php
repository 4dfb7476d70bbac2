<?php
// Processes the messages of a queue until SIGTERM: php worker.php QUEUE
// It needs the extension pcntl, for signals.
$url = getenv('QUEUED_URL') ?: 'http://localhost:8000';
$token = getenv('QUEUED_TOKEN') ?: '';
$lease = (int) (getenv('LEASE_SECONDS') ?: 30); // the time after a crash until a message is delivered again
const WAIT = 5; // less than the time from SIGTERM to SIGKILL, which is 10 s in Docker

$stopping = false;
pcntl_async_signals(true);
pcntl_signal(SIGTERM, function () use (&$stopping) { $stopping = true; });

// Your work. It may take longer than the lease, and an exception is a failed delivery.
function process(array $data): void
{
    echo $data['to'] ?? throw new Exception('the message has no address'), "\n";
    for ($end = time() + ($data['seconds'] ?? 0); time() < $end; sleep(1)); // a signal ends a sleep
}

function call(string $method, string $path, array $body = [], int $attempts = 1): ?array
{
    global $url, $token;
    $context = stream_context_create(['http' => [
        'method' => $method,
        'header' => ["Authorization: Bearer $token", 'Content-Type: application/json'],
        'content' => json_encode((object) $body),
        'timeout' => WAIT + 10,
        'ignore_errors' => true, // read the body also after a 4xx or 5xx
    ]]);
    for ($attempt = 1; ; $attempt++) {
        $status = 0;
        $text = 'no response';
        $response = @fopen($url . $path, 'r', false, $context);
        if ($response) {
            $status = (int) explode(' ', stream_get_meta_data($response)['wrapper_data'][0])[1];
            $text = stream_get_contents($response);
            $result = json_decode($text, true);
            if ($status === 204 || $status < 300 && $result) {
                return $result;
            }
        }
        $final = $status >= 400 && $status < 500 && $status !== 429;
        if ($attempt === $attempts || $final) {
            throw new RuntimeException("$method $path: $status $text");
        }
        sleep($attempt);
    }
}

function path(array $message, string $action): string
{
    return "/messages/$message[id]/$action?scheduled_at=$message[scheduled_at]";
}

while (!$stopping) {
    try {
        $received = call('POST', "/queues/$argv[1]/messages/receive", ['limit' => 1, 'wait_seconds' => WAIT, 'ack_deadline_seconds' => $lease]);
    } catch (RuntimeException $error) {
        fwrite(STDERR, $error->getMessage() . "\n");
        sleep(1);
        continue;
    }
    foreach ($received['data'] as $message) {
        // PHP has no threads: an alarm interrupts the work to extend the lease.
        pcntl_signal(SIGALRM, function () use (&$message, $lease) {
            pcntl_alarm(max(1, intdiv($lease, 3)));
            try { // the lease token changes with each extension
                $message['scheduled_at'] = call('PUT', path($message, 'extend'), ['ack_deadline_seconds' => $lease])['scheduled_at'];
            } catch (RuntimeException $error) {
                fwrite(STDERR, $error->getMessage() . "\n");
            }
        });
        pcntl_alarm(max(1, intdiv($lease, 3)));
        [$action, $body] = ['ack', []];
        try {
            process($message['data']);
        } catch (Throwable $error) { // after the last delivery the message moves to the dead queue, with this text
            [$action, $body] = ['nack', ['error' => (string) $error]];
        }
        pcntl_alarm(0);
        try {
            call('PUT', path($message, $action), $body, 5);
        } catch (RuntimeException $error) { // a 409 says that the lease has ended, and another worker may have the message
            fwrite(STDERR, $error->getMessage() . "\n");
        }
    }
}
