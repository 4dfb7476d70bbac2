# Processes the messages of a queue until SIGTERM or Ctrl-C: ruby worker.rb QUEUE
require "json"
require "net/http"

SERVER = URI(ENV.fetch("QUEUED_URL", "http://localhost:8000"))
HEADERS = { "Authorization" => "Bearer #{ENV.fetch("QUEUED_TOKEN", "")}" }
LEASE = ENV.fetch("LEASE_SECONDS", "30").to_i # the time after a crash until a message is delivered again
WAIT = 5 # less than the time from SIGTERM to SIGKILL, which is 10 s in Docker

# Your work. It may take longer than the lease, and an exception is a failed delivery.
def work(data)
  puts data.fetch("to")
  sleep data.fetch("seconds", 0)
end

# Returns nil if the request fails. Ruby would repeat a PUT by itself, which must not happen
# to an extension: see max_retries.
def call(method, path, body)
  options = { use_ssl: SERVER.scheme == "https", open_timeout: 5, read_timeout: WAIT + 10, max_retries: 0 }
  response = Net::HTTP.start(SERVER.host, SERVER.port, options) { |http| http.send_request(method, path, body.to_json, HEADERS) }
  raise "#{response.code} #{response.body}" unless response.is_a?(Net::HTTPSuccess)
  JSON.parse(response.body)
rescue => error
  warn "#{method} #{path}: #{error.message}"
end

$stdout.sync = true
stopping = false
%w[TERM INT].each { |signal| trap(signal) { stopping = true } }
done = {} # the ack or nack of the last message, which is sent with the next receive
until stopping && done.empty?
  receive = { limit: stopping ? 0 : 1, wait_seconds: WAIT, ack_deadline_seconds: LEASE, **done }
  received = call("POST", "/queues/#{ARGV[0]}/messages/receive", receive)
  if received.nil?
    sleep 1 # and repeat the ack or nack
    next
  end
  done = {}
  received["data"].each do |message|
    lease = message.slice("id", "scheduled_at")
    job = Thread.new do
      work(message["data"])
      nil
    rescue => error
      error.full_message(highlight: false)
    end
    until job.join(LEASE / 3.0)
      extended = call("PUT", "/messages/#{lease["id"]}/extend?scheduled_at=#{lease["scheduled_at"]}", { ack_deadline_seconds: LEASE })
      lease["scheduled_at"] = extended["scheduled_at"] if extended # the new lease token
    end
    warn "#{message["id"]}: #{job.value}" if job.value
    # After the last delivery the message moves to the dead queue, with the text of the error.
    done = job.value ? { nack: [lease.merge(error: job.value)] } : { ack: [lease] }
  end
end
