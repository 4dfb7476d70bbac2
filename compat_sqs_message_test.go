package main

import (
	"strings"
	"testing"
)

// The sums that AWS returned for these messages.
func TestSQSSumsAreThoseOfAWS(t *testing.T) {
	t.Parallel()
	text := func(name, value string) sqsMessageAttribute { return sqsMessageAttribute{name, "String", value} }
	for want, attributes := range map[string][]sqsMessageAttribute{
		"":                                 nil,
		"a311262e065454b75da111d535b8dacd": {text("Hello", "There")},
		"4c360f3fdafd970e05fae2f149d997f5": {text("Hello", "There"), text("Help.Me", "Me"), text("General", "Kenobi")},
	} {
		sortSQSAttributes(attributes)
		checkDiff(t, "sum of attributes", want, sqsAttributesMD5(attributes))
	}
	checkDiff(t, "sum of a body", "5d41402abc4b2a76b9719d911017c592", sqsMD5("hello"))

	// By the rule: lengths, texts, and 2 before bytes.
	got := sqsAttributesMD5([]sqsMessageAttribute{{"b", "Binary.png", "\x00\xff"}})
	checkDiff(t, "sum of bytes", sqsMD5("\x00\x00\x00\x01b\x00\x00\x00\x0aBinary.png\x02\x00\x00\x00\x02\x00\xff"), got)
	got = sqsAttributesMD5([]sqsMessageAttribute{{"n", "Number.int", "+1.50"}})
	checkDiff(t, "sum of a number", sqsMD5("\x00\x00\x00\x01n\x00\x00\x00\x0aNumber.int\x01\x00\x00\x00\x05+1.50"), got)
}

func TestSQSMessageAttributesAreChecked(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 256)
	for _, v := range []struct {
		name, value string // the value in JSON
		code        string // empty if it is valid
	}{
		{"a", `{"DataType":"String","StringValue":"x"}`, ""},
		{"A-z_0.9", `{"DataType":"String.label","StringValue":"\t\n\r ퟿😀"}`, ""},
		{"øß", `{"DataType":"String","StringValue":"x"}`, ""},
		{long, `{"DataType":"String","StringValue":"x"}`, ""},
		{"amazon", `{"DataType":"String","StringValue":"x","StringListValues":[],"BinaryListValues":null}`, ""},
		{"n", `{"DataType":"Number","StringValue":"-12.50e3"}`, ""},
		{"n", `{"DataType":"Number.int","StringValue":"00012345678901234567890123456789012345678"}`, ""},
		{"b", `{"DataType":"Binary","BinaryValue":"AP8="}`, ""},
		{"b", `{"DataType":"Binary.` + long[:249] + `","BinaryValue":"AP8="}`, ""},

		{"", `{"DataType":"String","StringValue":"x"}`, "InvalidParameterValue"},
		{long + "x", `{"DataType":"String","StringValue":"x"}`, "InvalidParameterValue"},
		{".a", `{"DataType":"String","StringValue":"x"}`, "InvalidParameterValue"},
		{"a.", `{"DataType":"String","StringValue":"x"}`, "InvalidParameterValue"},
		{"a..b", `{"DataType":"String","StringValue":"x"}`, "InvalidParameterValue"},
		{"a b", `{"DataType":"String","StringValue":"x"}`, "InvalidParameterValue"},
		{"a/b", `{"DataType":"String","StringValue":"x"}`, "InvalidParameterValue"},
		{"aWs.x", `{"DataType":"String","StringValue":"x"}`, "InvalidParameterValue"},
		{"AMAZON.x", `{"DataType":"String","StringValue":"x"}`, "InvalidParameterValue"},
		{"a", `{"DataType":"String"}`, "InvalidParameterValue"},
		{"a", `{"DataType":"String","StringValue":""}`, "InvalidParameterValue"},
		{"a", `{"DataType":"String","BinaryValue":"AP8="}`, "InvalidParameterValue"},
		{"a", `{"DataType":"String","StringValue":"\u0000"}`, "InvalidParameterValue"},
		{"a", `{"DataType":"String","StringValue":"\ud800"}`, "InvalidParameterValue"},
		{"a", `{"StringValue":"x"}`, "InvalidParameterValue"},
		{"a", `{"DataType":"","StringValue":"x"}`, "InvalidParameterValue"},
		{"a", `{"DataType":"string","StringValue":"x"}`, "InvalidParameterValue"},
		{"a", `{"DataType":"Strings","StringValue":"x"}`, "InvalidParameterValue"},
		{"a", `{"DataType":"String.` + long[:250] + `","StringValue":"x"}`, "InvalidParameterValue"},
		{"n", `{"DataType":"Number","StringValue":"x"}`, "InvalidParameterValue"},
		{"n", `{"DataType":"Number","StringValue":"0x1"}`, "InvalidParameterValue"},
		{"n", `{"DataType":"Number","StringValue":"NaN"}`, "InvalidParameterValue"},
		{"n", `{"DataType":"Number","StringValue":""}`, "InvalidParameterValue"},
		{"b", `{"DataType":"Binary"}`, "InvalidParameterValue"},
		{"b", `{"DataType":"Binary","StringValue":"x"}`, "InvalidParameterValue"},
		{"b", `{"DataType":"Binary","BinaryValue":"%"}`, "MalformedInput"},
		{"a", `{"DataType":"String","StringValue":"x","StringListValues":["x"]}`, "AWS.SimpleQueueService.UnsupportedOperation"},
		{"b", `{"DataType":"Binary","BinaryValue":"AP8=","BinaryListValues":["AP8="]}`, "AWS.SimpleQueueService.UnsupportedOperation"},
	} {
		in, err := parseSQSJSON("SendMessage", []byte(`{"MessageAttributes":{"`+v.name+`":`+v.value+`}}`))
		if err != nil {
			t.Fatal(err)
		}
		_, err = in.messageAttributes("MessageAttributes")
		code := ""
		if err != nil {
			code = err.(sqsError).code
		}
		if code != v.code {
			t.Errorf("%q %s = %v, want %q", v.name, v.value, err, v.code)
		}
	}
	ten := `"a":{"DataType":"String","StringValue":"x"}`
	for n := range 9 {
		ten += strings.ReplaceAll(`,"aN":{"DataType":"String","StringValue":"x"}`, "N", string(rune('0'+n)))
	}
	for attributes, want := range map[string]string{
		ten: "",
		ten + `,"b":{"DataType":"String","StringValue":"x"}`: "Number of message attributes [11] exceeds the allowed maximum [10].",
	} {
		in, err := parseSQSJSON("SendMessage", []byte(`{"MessageAttributes":{`+attributes+`}}`))
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if _, err = in.messageAttributes("MessageAttributes"); err != nil {
			got = err.Error()
		}
		checkDiff(t, "error", want, got)
	}
}

// What the database keeps of attributes gives the same attributes again.
func TestSQSMessageAttributesAreStored(t *testing.T) {
	t.Parallel()
	for _, v := range []struct {
		attributes          []sqsMessageAttribute
		wantStored, wantSQS string
	}{
		{nil, "", ""},
		{[]sqsMessageAttribute{{"a", "String", `"<é`}, {"b", "String", "x"}}, `{"a":"\"<é","b":"x"}`, ""},
		{[]sqsMessageAttribute{{"a", "String.x", "1"}, {"b", "Number", "01"}}, `{"a":"1","b":"01"}`, `{"types":{"a":"String.x","b":"Number"}}`},
		{[]sqsMessageAttribute{{"b", "Binary", "\x00\xff"}}, "", `{"types":{"b":"Binary"},"binary":{"b":"AP8="}}`},
		{[]sqsMessageAttribute{{"a", "Binary.x", "\x00"}, {"b", "String", "x"}}, `{"b":"x"}`, `{"types":{"a":"Binary.x"},"binary":{"a":"AA=="}}`},
	} {
		var extra sqsExtra
		stored := extra.store(v.attributes)
		checkDiff(t, "attributes", v.wantStored, string(stored))
		checkDiff(t, "sqs", v.wantSQS, string(extra.json()))
		read := readSQSExtra(extra.json())
		got := read.attributes(stored)
		if sqsAttributesMD5(got) != sqsAttributesMD5(v.attributes) || len(got) != len(v.attributes) {
			t.Errorf("%v were read as %v", v.attributes, got)
		}
	}
	// Attributes that others have published.
	var none sqsExtra
	got := none.attributes([]byte(`{"z":"\ud800","a":"","n":1}`))
	if len(got) != 3 || got[0] != (sqsMessageAttribute{"a", "String", ""}) || got[1].value != "1" || got[2].value != "\uFFFD\uFFFD\uFFFD" && got[2].value != "\uFFFD" {
		t.Errorf("attributes of others = %q", got)
	}
}

func TestSQSReceiversChooseAttributes(t *testing.T) {
	t.Parallel()
	all := []sqsMessageAttribute{{name: "a"}, {name: "a.b"}, {name: "ab"}, {name: "b"}}
	for names, want := range map[string]string{
		"": "", "a": "a", "a b": "a b", "All": "a a.b ab b", ".*": "a a.b ab b", "a.*": "a a.b ab", "a.b": "a.b", "b.* x": "b", "*": "", "all": "",
	} {
		var got []string
		for _, a := range chosenSQSAttributes(all, strings.Fields(names)) {
			got = append(got, a.name)
		}
		checkDiff(t, "chosen by "+names, want, strings.Join(got, " "))
	}
}

func TestSQSReceiptHandles(t *testing.T) {
	t.Parallel()
	const id = "01a2070a-637d-779c-bda4-c363025bdbb3"
	for _, v := range []receipt{{queueKey: 1, seq: 1, attempts: 1}, {queueKey: -5, seq: 1 << 62, attempts: 1 << 30}, {queueKey: 1 << 60, seq: -1, attempts: 7, receivedAt: 1}, {queueKey: 1, seq: 1, attempts: 1<<31 - 1, receivedAt: maxReceivedAt}} {
		handle := sqsHandle(id, v)
		gotID, got, ok := readSQSHandle(handle)
		if !ok || gotID != id || got != v || len(handle) > 1024 {
			t.Errorf("%+v became %q, which is read as %s %+v %v", v, handle, gotID, got, ok)
		}
		for i := range handle {
			for _, other := range []string{handle[:i], handle[:i] + "-" + handle[i:], handle[:i] + string(handle[i]^1) + handle[i+1:], handle + handle[:i]} {
				if _, got, ok := readSQSHandle(other); ok && other != handle {
					t.Errorf("%q is read as %+v", other, got)
				}
			}
		}
	}
	for _, handle := range []string{"", "x", "AQ", "AQAAAAAA", id, strings.Repeat("A", 2000), "é"} {
		if _, _, ok := readSQSHandle(handle); ok {
			t.Errorf("%q is a receipt handle", handle)
		}
	}
}

// Receipt handles with a checksum can be made up. Numbers that PostgreSQL does not have are
// refused, and any others match no message.
func TestSQSMadeUpReceiptHandles(t *testing.T) {
	t.Parallel()
	s := newTestServer(t)
	s.createSQS("q")
	key := int64(s.count("SELECT key FROM queued.queues"))
	for _, v := range []struct {
		receipt
		valid bool
	}{
		{receipt{queueKey: key, seq: 1 << 62, attempts: 1<<31 - 1, receivedAt: maxReceivedAt}, true},
		{receipt{queueKey: key, seq: -1 << 63, attempts: 1}, true},
		{receipt{queueKey: key, attempts: 0}, false},
		{receipt{queueKey: key, attempts: 1 << 31}, false},
		{receipt{queueKey: key, attempts: 1 << 40}, false},
		{receipt{queueKey: key, attempts: 1, receivedAt: maxReceivedAt + 1}, false},
		{receipt{queueKey: key, attempts: 1, receivedAt: -1}, false},
	} {
		wantDelete, wantChange := "", "InvalidParameterValue"
		if !v.valid {
			wantDelete, wantChange = "ReceiptHandleIsInvalid", "ReceiptHandleIsInvalid"
		}
		handle := sqsHandle(unknownID, v.receipt)
		for action, want := range map[string]string{"DeleteMessage": wantDelete, "ChangeMessageVisibility": wantChange} {
			got := s.sqs(action, `{"QueueUrl":"q","ReceiptHandle":"`+handle+`","VisibilityTimeout":1}`)
			code, _, _ := strings.Cut(got.header.Get("x-amzn-query-error"), ";")
			if code != want || got.status >= 500 {
				t.Errorf("%s with %+v = %d %s, want %q", action, v.receipt, got.status, got.body, want)
			}
		}
	}
}

func TestSQSNamesInURLsAndARNs(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"http://h/000000000000/q": "q", "https://sqs.eu-west-1.amazonaws.com/123456789012/a_b-C.fifo": "a_b-C.fifo", "http://h:1/0/q/": "q", "q": "q", "q.fifo": "q.fifo",
		"/000000000000/q": "q", "arn:aws:sqs:eu-west-1:123456789012:q": "q", "arn:aws:sqs:::q.fifo": "q.fifo", "": "", "/": "", "http://h/": "h",
	} {
		checkDiff(t, "name in "+text, want, sqsNameOf(text))
	}
	for name, want := range map[string]bool{
		"a": true, "A_z-09": true, strings.Repeat("x", 80): true, strings.Repeat("x", 75) + ".fifo": true,
		"": false, strings.Repeat("x", 81): false, strings.Repeat("x", 76) + ".fifo": false, "a.b": false, ".fifo": false, "a b": false, "é": false, "a.fifo.fifo": false, "a/b": false,
	} {
		checkDiff(t, "validity of "+name, want, validSQSName(name))
	}
}
