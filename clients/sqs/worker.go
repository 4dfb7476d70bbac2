// The program sends twenty orders and processes them: worker URL NAME
//
// The seventh fails the first time, and is received again.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"strconv"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
)

func main() {
	endpoint, name := os.Args[1], os.Args[2]
	ctx := context.Background()
	client := sqs.New(sqs.Options{
		BaseEndpoint: &endpoint,
		Region:       "us-east-1",
		Credentials:  credentials.NewStaticCredentialsProvider("WORKER", "nJ4x0v2Yq8sT6wZb1LkR", ""),
	})
	_, err := client.GetQueueUrl(ctx, &sqs.GetQueueUrlInput{QueueName: &name})
	if missing := (*types.QueueDoesNotExist)(nil); !errors.As(err, &missing) {
		log.Fatalf("GetQueueUrl of a queue that does not exist: %v", err)
	}
	created, err := client.CreateQueue(ctx, &sqs.CreateQueueInput{
		QueueName:  &name,
		Attributes: map[string]string{"VisibilityTimeout": "60"},
		Tags:       map[string]string{"team": "orders"},
	})
	check(err)
	queue := created.QueueUrl
	for n := 1; n <= 20; n += 10 {
		var entries []types.SendMessageBatchRequestEntry
		for i := n; i < n+10; i++ {
			entries = append(entries, types.SendMessageBatchRequestEntry{
				Id:          aws.String(strconv.Itoa(i)),
				MessageBody: aws.String(strconv.Itoa(i)),
				MessageAttributes: map[string]types.MessageAttributeValue{
					"queue": {DataType: aws.String("String"), StringValue: &name},
					"bytes": {DataType: aws.String("Binary"), BinaryValue: []byte{0, 255}},
				},
			})
		}
		sent, err := client.SendMessageBatch(ctx, &sqs.SendMessageBatchInput{QueueUrl: queue, Entries: entries})
		check(err)
		if len(sent.Successful) != 10 {
			log.Fatalf("sent %d of 10 messages: %v", len(sent.Successful), sent.Failed)
		}
	}
	for {
		received, err := client.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{
			QueueUrl:                    queue,
			MaxNumberOfMessages:         10,
			MessageAttributeNames:       []string{"All"},
			MessageSystemAttributeNames: []types.MessageSystemAttributeName{"ApproximateReceiveCount"},
		})
		check(err)
		if len(received.Messages) == 0 {
			break
		}
		for _, m := range received.Messages {
			delivery := m.Attributes["ApproximateReceiveCount"]
			if *m.Body == "7" && delivery == "1" {
				_, err := client.ChangeMessageVisibility(ctx, &sqs.ChangeMessageVisibilityInput{QueueUrl: queue, ReceiptHandle: m.ReceiptHandle})
				check(err)
				continue
			}
			fmt.Println(*m.MessageAttributes["queue"].StringValue, *m.Body, delivery)
			_, err := client.DeleteMessage(ctx, &sqs.DeleteMessageInput{QueueUrl: queue, ReceiptHandle: m.ReceiptHandle})
			check(err)
		}
	}
	_, err = client.DeleteQueue(ctx, &sqs.DeleteQueueInput{QueueUrl: queue})
	check(err)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
