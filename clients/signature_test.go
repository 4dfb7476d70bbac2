package clients

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/smithy-go"
)

const sqsSecret = "the-secret-of-the-clients"

// newSQS returns a client of Amazon's SDK that signs with the key of the server, or with
// another secret.
func newSQS(url, id, secret string) *sqs.Client {
	return sqs.New(sqs.Options{
		Region:       "eu-north-1",
		BaseEndpoint: aws.String(url),
		Credentials:  credentials.NewStaticCredentialsProvider(id, secret, ""),
		Retryer:      aws.NopRetryer{},
	})
}

// The signer is Amazon's.
func TestSignaturesOfAmazonsSDKAreAccepted(t *testing.T) {
	t.Parallel()
	tokens := filepath.Join(t.TempDir(), "tokens.json")
	if err := os.WriteFile(tokens, []byte(`{"tokens":[{"name":"clients","access_key_id":"CLIENTS","secret_access_key":"`+sqsSecret+`","admin":true}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	url := startServer(t, mustBuild(t, ".."), "-token-file", tokens)
	ctx := t.Context()
	client := newSQS(url, "CLIENTS", sqsSecret)
	created, err := client.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: aws.String("signed")})
	if err != nil {
		t.Fatal(err)
	}
	const body = "ä & =+ <x> %41"
	if _, err := client.SendMessage(ctx, &sqs.SendMessageInput{QueueUrl: created.QueueUrl, MessageBody: aws.String(body)}); err != nil {
		t.Fatal(err)
	}
	received, err := client.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{QueueUrl: created.QueueUrl, WaitTimeSeconds: 20})
	if err != nil || len(received.Messages) != 1 || *received.Messages[0].Body != body {
		t.Fatalf("received %+v, %v", received, err)
	}

	for code, wrong := range map[string]*sqs.Client{
		"SignatureDoesNotMatch": newSQS(url, "CLIENTS", sqsSecret+"x"),
		"InvalidClientTokenId":  newSQS(url, "OTHERS", sqsSecret),
	} {
		_, err := wrong.ListQueues(ctx, &sqs.ListQueuesInput{})
		var failure smithy.APIError
		if !errors.As(err, &failure) || failure.ErrorCode() != code {
			t.Errorf("with a wrong key: %v, want %s", err, code)
		}
	}

	// Presigned URLs, which the client does not send itself.
	const query = "/000000000000/signed?Action=SendMessage&MessageBody=a%20b%2Bc~d%2Ae%2Ff%3Dg%26h%27%C3%A4&X-Amz-Expires=60"
	for what, v := range map[string]struct {
		url    string
		age    time.Duration
		status int
	}{
		"presigned":                 {url + query, 0, http.StatusOK},
		"presigned a minute ago":    {url + query, 55 * time.Second, http.StatusOK},
		"presigned two minutes ago": {url + query, 2 * time.Minute, http.StatusForbidden},
	} {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, v.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		const emptyHash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
		signed, _, err := v4.NewSigner().PresignHTTP(ctx, aws.Credentials{AccessKeyID: "CLIENTS", SecretAccessKey: sqsSecret}, r, emptyHash, "sqs", "eu-north-1", time.Now().Add(-v.age))
		if err != nil {
			t.Fatal(err)
		}
		if status, body := get(ctx, t, signed); status != v.status {
			t.Errorf("%s = %d %s, want %d", what, status, body, v.status)
		}
		if status, body := get(ctx, t, signed+"&DelaySeconds=5"); status != http.StatusForbidden {
			t.Errorf("%s, with another parameter = %d %s", what, status, body)
		}
	}
}

func get(ctx context.Context, t *testing.T, url string) (status int, body string) {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(b)
}
