<?php
// Publishes each line of its input, a JSON object: php producer.php QUEUE < FILE
$url = getenv('QUEUED_URL') ?: 'http://localhost:8000';
$token = getenv('QUEUED_TOKEN') ?: '';

// publish publishes a message and returns its id. It tries for up to two minutes, which
// has to be less than the deduplication window of the queue (5 minutes).
function publish(string $queue, string $data): string
{
    global $url, $token;
    $context = stream_context_create(['http' => [
        'method' => 'POST',
        'header' => [
            "Authorization: Bearer $token",
            'Content-Type: application/json',
            'Idempotency-Key: ' . bin2hex(random_bytes(16)), // the same in each attempt: the message is stored once
        ],
        'content' => "{\"data\": $data}",
        'timeout' => 10,
        'ignore_errors' => true, // read the body also after a 4xx or 5xx
    ]]);
    for ($delay = 1; ; $delay *= 2) {
        $retryAfter = $delay;
        $failure = 'no response';
        $response = @fopen("$url/queues/$queue/messages", 'r', false, $context);
        if ($response) {
            $header = stream_get_meta_data($response)['wrapper_data'];
            $status = (int) explode(' ', $header[0])[1];
            $body = stream_get_contents($response);
            $id = json_decode($body)->data[0]->id ?? null;
            if ($status === 201 && $id) {
                return $id;
            }
            $failure = "$status $body";
            if ($status >= 400 && $status < 500 && $status !== 429) {
                break; // no attempt can succeed
            }
            foreach (preg_grep('/^Retry-After:/i', $header) as $line) {
                $retryAfter = (int) explode(':', $line)[1];
            }
        }
        if ($delay > 16) {
            break;
        }
        fwrite(STDERR, "publish: $failure; next attempt in $retryAfter s\n");
        sleep($retryAfter);
    }
    throw new RuntimeException("publish: $failure");
}

while (($line = fgets(STDIN)) !== false) {
    echo publish($argv[1], $line), "\n";
}
