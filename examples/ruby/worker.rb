# Processes the messages of a queue until SIGTERM: ruby worker.rb QUEUE
require "json"
require "net/http"

URL = ENV.fetch("QUEUED_URL", "http://localhost:8000")
TOKEN = ENV.fetch("QUEUED_TOKEN", "")
LEASE = ENV.fetch("LEASE_SECONDS", "30").to_i # the time after a crash until a message is delivered again
WAIT = 5 # less than the time from SIGTERM to SIGKILL, which is 10 s in Docker

$stdout.sync = true
stopping = false
trap("TERM") { stopping = true }

# Your work. It may take longer than the lease, and an exception is a failed delivery.
def process(data)
  puts data.fetch("to")
  sleep data.fetch("seconds", 0)
end

class Failure < StandardError; end

def call(method, path, body = {}, attempts: 1)
  uri = URI(URL)
  attempt = 1
  begin
    # Ruby repeats a PUT by itself, which must not happen to an extension: see max_retries.
    response = Net::HTTP.start(uri.host, uri.port, use_ssl: uri.scheme == "https", open_timeout: 5, read_timeout: WAIT + 10, max_retries: 0) do |http|
      http.send_request(method, path, body.to_json, "Authorization" => "Bearer #{TOKEN}")
    end
    status = response.code.to_i
    raise IOError, "#{status} #{response.body}" if status == 429 || status >= 500
    raise Failure, "#{method} #{path}: #{status} #{response.body}" if status >= 300
    JSON.parse(response.body) if response.body
  rescue SystemCallError, IOError, SocketError, Timeout::Error, OpenSSL::SSL::SSLError, Net::ProtocolError => error
    raise Failure, "#{method} #{path}: #{error.message}" if attempt == attempts
    sleep attempt
    attempt += 1
    retry
  end
end

def path(message, action)
  "/messages/#{message["id"]}/#{action}?scheduled_at=#{message["scheduled_at"]}"
end

def extend_lease(message)
  # The lease token changes with each extension.
  message["scheduled_at"] = call("PUT", path(message, "extend"), { ack_deadline_seconds: LEASE })["scheduled_at"]
rescue Failure => error
  warn error.message
end

until stopping
  begin
    received = call("POST", "/queues/#{ARGV[0]}/messages/receive", { limit: 1, wait_seconds: WAIT, ack_deadline_seconds: LEASE })
  rescue Failure => error
    warn error.message
    sleep 1
    next
  end
  received["data"].each do |message|
    lock = Mutex.new
    extender = Thread.new { loop { sleep LEASE / 3.0; lock.synchronize { extend_lease(message) } } }
    action, body = "ack", {}
    begin
      process(message["data"])
    rescue => error # after the last delivery the message moves to the dead queue, with this text
      action, body = "nack", { error: error.full_message(highlight: false) }
    end
    lock.synchronize { extender.kill } # not during a request
    begin
      call("PUT", path(message, action), body, attempts: 5)
    rescue Failure => error # a 409 says that the lease has ended, and another worker may have the message
      warn error.message
    end
  end
end
