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
        $response = @fopen("$url/queues/$queue/messages", 'r', false, $context);
        $status = $response ? (int) explode(' ', stream_get_meta_data($response)['wrapper_data'][0])[1] : 0;
        $body = $response ? stream_get_contents($response) : 'no response';
        $id = json_decode($body)->data[0]->id ?? null;
        if ($id) {
            return $id;
        }
        $final = $status >= 400 && $status < 500 && $status !== 429; // no attempt can succeed
        if ($final || $delay > 16) {
            throw new RuntimeException("publish: $status $body");
        }
        fwrite(STDERR, "publish: $status $body; next attempt in $delay s\n");
        sleep($delay);
    }
}

while (($line = fgets(STDIN)) !== false) {
    echo publish($argv[1], $line), "\n";
}
