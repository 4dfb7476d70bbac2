<?php
// Processes the messages of a queue until SIGTERM or Ctrl-C: php worker.php QUEUE
// It needs the extension pcntl, for signals.
define('URL', getenv('QUEUED_URL') ?: 'http://localhost:8000');
define('LEASE', (int) (getenv('LEASE_SECONDS') ?: 30)); // the time after a crash until a message is delivered again
const WAIT = 5; // less than the time from SIGTERM to SIGKILL, which is 10 s in Docker

// Your work. It may take longer than the lease, and an exception is a failed delivery.
function work(array $data): void
{
    echo $data['to'] ?? throw new Exception('the message has no address'), "\n";
    for ($end = time() + ($data['seconds'] ?? 0); time() < $end; sleep(1)); // a signal ends a sleep
}

// Returns null if the request fails.
function call(string $method, string $path, array $body): ?array
{
    $text = @file_get_contents(URL . $path, false, stream_context_create(['http' => [
        'method' => $method,
        'header' => ['Authorization: Bearer ' . getenv('QUEUED_TOKEN'), 'Content-Type: application/json'],
        'content' => json_encode($body),
        'timeout' => WAIT + 10,
        'ignore_errors' => true, // return the body also after a 4xx or 5xx
    ]]));
    $response = json_decode((string) $text, true);
    if ($response && !isset($response['detail'])) { // which is in the responses to failed requests
        return $response;
    }
    fwrite(STDERR, "$method $path: " . ($text ?: 'no response') . "\n");
    return null;
}

$stopping = false;
pcntl_async_signals(true);
foreach ([SIGTERM, SIGINT] as $signal) {
    pcntl_signal($signal, function () use (&$stopping) { $stopping = true; });
}
$done = []; // the ack or nack of the last message, which is sent with the next receive
while ($done || !$stopping) {
    $receive = ['limit' => $stopping ? 0 : 1, 'wait_seconds' => WAIT, 'ack_deadline_seconds' => LEASE];
    $received = call('POST', "/queues/$argv[1]/messages/receive", $receive + $done);
    if (!$received) {
        sleep(1); // and repeat the ack or nack
        continue;
    }
    $done = [];
    foreach ($received['data'] as ['id' => $id, 'scheduled_at' => $token, 'data' => $data]) {
        // PHP has no threads: an alarm interrupts the work to extend the lease.
        pcntl_signal(SIGALRM, function () use ($id, &$token) {
            pcntl_alarm(max(1, intdiv(LEASE, 3)));
            $extended = call('PUT', "/messages/$id/extend?scheduled_at=$token", ['ack_deadline_seconds' => LEASE]);
            $token = $extended['scheduled_at'] ?? $token;
        });
        pcntl_alarm(max(1, intdiv(LEASE, 3)));
        try {
            work($data);
            $error = null;
        } catch (Throwable $error) {
            fwrite(STDERR, "$id: $error\n");
        }
        pcntl_alarm(0);
        $message = ['id' => $id, 'scheduled_at' => $token];
        // After the last delivery the message moves to the dead queue, with the text of the error.
        $done = $error ? ['nack' => [$message + ['error' => (string) $error]]] : ['ack' => [$message]];
    }
}
