# Publishes each line of its input, a JSON object: ruby producer.rb QUEUE < FILE
require "json"
require "net/http"
require "securerandom"

URL = ENV.fetch("QUEUED_URL", "http://localhost:8000")
TOKEN = ENV.fetch("QUEUED_TOKEN", "")

# Publishes a message and returns its id. It tries for up to two minutes, which has to be
# less than the deduplication window of the queue (5 minutes).
def publish(queue, data)
  uri = URI("#{URL}/queues/#{queue}/messages")
  key = SecureRandom.uuid # the same in each attempt: the message is stored once
  delay = 1
  begin
    response = Net::HTTP.start(uri.host, uri.port, use_ssl: uri.scheme == "https", open_timeout: 5, read_timeout: 10) do |http|
      http.post(uri.path, { data: data }.to_json, "Authorization" => "Bearer #{TOKEN}", "Idempotency-Key" => key)
    end
    status = response.code.to_i
    raise IOError, "#{status} #{response.body}" if status == 429 || status >= 500
    abort "publish: #{status} #{response.body}" if status != 201 # no attempt can succeed
    JSON.parse(response.body)["data"][0]["id"]
  rescue SystemCallError, IOError, SocketError, Timeout::Error, OpenSSL::SSL::SSLError, Net::ProtocolError => error
    raise if delay > 16
    warn "publish: #{error.message}; next attempt in #{delay} s"
    sleep delay
    delay *= 2
    retry
  end
end

$stdout.sync = true
$stdin.each_line { |line| puts publish(ARGV[0], JSON.parse(line)) }
