package main

import (
	"testing"
)

// flat returns what the methods of an input return.
func (in *sqsInput) flat() map[string]any {
	all := map[string]any{}
	for _, name := range []string{"QueueUrl", "MessageBody"} {
		if text := in.text(name); text != "" {
			all[name] = text
		}
	}
	for _, name := range []string{"DelaySeconds", "MaxResults"} {
		if n := in.integer(name); n != nil {
			all[name] = *n
		}
	}
	for _, name := range []string{"AttributeNames", "MessageSystemAttributeNames", "MessageAttributeNames", "TagKeys", "AWSAccountIds", "Actions"} {
		if list := in.texts(name); list != nil {
			all[name] = list
		}
	}
	for _, name := range []string{"Attributes", "tags", "Tags"} {
		for _, v := range in.pairs(name) {
			all[name+" "+v.key] = v.value
		}
	}
	for _, name := range []string{"MessageAttributes", "MessageSystemAttributes"} {
		for _, v := range in.structureMap(name) {
			all[name+" "+v.key] = []string{v.value.text("DataType"), v.value.text("StringValue"), string(v.value.bytes("BinaryValue"))}
		}
	}
	for _, v := range in.structures("Entries") {
		all["entry "+v.text("Id")] = v.flat()
	}
	return all
}

func TestSQSProtocolsDecodeTheSame(t *testing.T) {
	t.Parallel()
	for _, v := range []struct {
		action, json string
		parameters   []string
		want         map[string]any
	}{
		{"A", `{}`, nil, map[string]any{}},
		{"A", `{"QueueUrl":null,"MaxResults":null,"AttributeNames":null,"Tags":null,"Entries":null,"MessageAttributes":null,"Other":{}}`, []string{"Other=x", "Version=1"}, map[string]any{}},
		{"A", ` {"QueueUrl":"http://h/q","MaxResults":10,"QueueUrl":"a\u00e9\n"} `, []string{"QueueUrl=x", "MaxResults=10", "QueueUrl=aé\n"}, map[string]any{"QueueUrl": "aé\n", "MaxResults": 10}},
		{"A", `{"DelaySeconds":0}`, []string{"DelaySeconds=0"}, map[string]any{"DelaySeconds": 0}},
		{"A", `{"DelaySeconds":-1}`, []string{"DelaySeconds=-1"}, map[string]any{"DelaySeconds": -1}},
		{"A", `{"AttributeNames":["a","b"],"MessageAttributeNames":["c"],"MessageSystemAttributeNames":["d"]}`,
			[]string{"AttributeName.2=b", "AttributeName.1=a", "MessageAttributeName.1=c", "MessageSystemAttributeName.7=d"},
			map[string]any{"AttributeNames": []string{"a", "b"}, "MessageAttributeNames": []string{"c"}, "MessageSystemAttributeNames": []string{"d"}}},
		{"A", `{"AttributeNames":["All"]}`, []string{"AttributeName=All"}, map[string]any{"AttributeNames": []string{"All"}}},
		{"A", `{"AttributeNames":["x1","x2","x3","x4","x5","x6","x7","x8","x9","x10"]}`,
			[]string{"AttributeName.10=x10", "AttributeName.9=x9", "AttributeName.1=x1", "AttributeName.2=x2", "AttributeName.3=x3", "AttributeName.4=x4", "AttributeName.5=x5", "AttributeName.6=x6", "AttributeName.7=x7", "AttributeName.8=x8"},
			map[string]any{"AttributeNames": []string{"x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10"}}},
		{"A", `{"TagKeys":["k"],"AWSAccountIds":["1"],"Actions":["*"]}`, []string{"TagKey.1=k", "AWSAccountId.1=1", "ActionName.1=*"},
			map[string]any{"TagKeys": []string{"k"}, "AWSAccountIds": []string{"1"}, "Actions": []string{"*"}}},
		{"A", `{"Attributes":{"a":"1","b":"x","a":"2"}}`, []string{"Attribute.1.Name=a", "Attribute.1.Value=1", "Attribute.2.Value=x", "Attribute.2.Name=b", "Attribute.3.Name=a", "Attribute.3.Value=2"},
			map[string]any{"Attributes a": "2", "Attributes b": "x"}},
		{"A", `{"Attributes":{"VisibilityTimeout":"5"}}`, []string{"Attribute.Name=VisibilityTimeout", "Attribute.Value=5"}, map[string]any{"Attributes VisibilityTimeout": "5"}},
		{"A", `{"tags":{"a b":""},"Tags":{"a b":""}}`, []string{"Tag.1.Key=a b", "Tag.1.Value="}, map[string]any{"tags a b": "", "Tags a b": ""}},
		{"A", `{"MessageAttributes":{"n":{"DataType":"Number","StringValue":"1"},"b":{"DataType":"Binary.x","BinaryValue":"AP8="}},"MessageSystemAttributes":{"AWSTraceHeader":{"DataType":"String","StringValue":"Root=1"}}}`,
			[]string{"MessageAttribute.1.Name=n", "MessageAttribute.1.Value.DataType=Number", "MessageAttribute.1.Value.StringValue=1",
				"MessageAttribute.2.Name=b", "MessageAttribute.2.Value.DataType=Binary.x", "MessageAttribute.2.Value.BinaryValue=AP8=",
				"MessageSystemAttribute.1.Name=AWSTraceHeader", "MessageSystemAttribute.1.Value.DataType=String", "MessageSystemAttribute.1.Value.StringValue=Root=1"},
			map[string]any{"MessageAttributes n": []string{"Number", "1", ""}, "MessageAttributes b": []string{"Binary.x", "", "\x00\xff"}, "MessageSystemAttributes AWSTraceHeader": []string{"String", "Root=1", ""}}},
		{"SendMessageBatch", `{"Entries":[{"Id":"1","MessageBody":"a=b&c","DelaySeconds":5},{"Id":"2","MessageAttributes":{"x":{"DataType":"String","StringValue":"y"}}}]}`,
			[]string{"SendMessageBatchRequestEntry.1.Id=1", "SendMessageBatchRequestEntry.1.MessageBody=a=b&c", "SendMessageBatchRequestEntry.1.DelaySeconds=5",
				"SendMessageBatchRequestEntry.2.Id=2", "SendMessageBatchRequestEntry.2.MessageAttribute.1.Name=x", "SendMessageBatchRequestEntry.2.MessageAttribute.1.Value.DataType=String", "SendMessageBatchRequestEntry.2.MessageAttribute.1.Value.StringValue=y"},
			map[string]any{"entry 1": map[string]any{"MessageBody": "a=b&c", "DelaySeconds": 5}, "entry 2": map[string]any{"MessageAttributes x": []string{"String", "y", ""}}}},
	} {
		in, err := parseSQSJSON(v.action, []byte(v.json))
		if err != nil {
			t.Fatal(err)
		}
		checkDiff(t, "JSON "+v.json, v.want, in.flat())
		checkDiff(t, "error", nil, in.err())
		in, err = parseSQSQuery("", sqsForm(append(v.parameters, "Action="+v.action)...))
		if err != nil {
			t.Fatal(err)
		}
		checkDiff(t, "parameters of "+v.json, v.want, in.flat())
		checkDiff(t, "error", nil, in.err())
	}
	in, err := parseSQSQuery("Action=A&QueueUrl=u%2Fq", "MessageBody=a+b%0D%0A&&x")
	if err != nil {
		t.Fatal(err)
	}
	checkDiff(t, "URL and body", map[string]any{"QueueUrl": "u/q", "MessageBody": "a b\r\n"}, in.flat())
}

func TestSQSProtocolsEncodeTheSame(t *testing.T) {
	t.Parallel()
	for _, v := range []struct {
		result    sqsObject
		json, xml string
	}{
		{nil, `{}`, `<AResponse xmlns="http://queue.amazonaws.com/doc/2012-11-05/"></AResponse>`},
		{sqsObject{{"Messages", []sqsObject{}}, {"QueueUrls", []string(nil)}, {"Attributes", sqsMap(nil)}, {"Failed", []sqsObject(nil)}}, `{}`, ``},
		{sqsObject{{"queueUrls", []string(nil)}, {"Results", []sqsObject(nil)}}, `{"queueUrls":[],"Results":[]}`, ``},
		{sqsObject{{"QueueUrls", []string{"a", "b"}}, {"NextToken", "x"}}, `{"QueueUrls":["a","b"],"NextToken":"x"}`, `<QueueUrl>a</QueueUrl><QueueUrl>b</QueueUrl><NextToken>x</NextToken>`},
		{sqsObject{{"queueUrls", []string{"a"}}}, `{"queueUrls":["a"]}`, `<QueueUrl>a</QueueUrl>`},
		{sqsObject{{"Attributes", sqsMap{{"b", "2"}, {"a", "1"}}}}, `{"Attributes":{"b":"2","a":"1"}}`, `<Attribute><Name>b</Name><Value>2</Value></Attribute><Attribute><Name>a</Name><Value>1</Value></Attribute>`},
		{sqsObject{{"Tags", sqsMap{{"k", "v"}}}}, `{"Tags":{"k":"v"}}`, `<Tag><Key>k</Key><Value>v</Value></Tag>`},
		{sqsObject{{"Messages", []sqsObject{{{"Body", "x"}, {"Attributes", sqsMap{}}, {"MessageAttributes", sqsMap{
			{"t", sqsObject{{"DataType", "String"}, {"StringValue", "é"}}}, {"b", sqsObject{{"DataType", "Binary"}, {"BinaryValue", []byte{0, 255}}}}}}}}}},
			`{"Messages":[{"Body":"x","MessageAttributes":{"t":{"DataType":"String","StringValue":"é"},"b":{"DataType":"Binary","BinaryValue":"AP8="}}}]}`,
			`<Message><Body>x</Body><MessageAttribute><Name>t</Name><Value><DataType>String</DataType><StringValue>é</StringValue></Value></MessageAttribute><MessageAttribute><Name>b</Name><Value><DataType>Binary</DataType><BinaryValue>AP8=</BinaryValue></Value></MessageAttribute></Message>`},
		{sqsObject{{"Successful", []sqsObject{{{"Id", "1"}}, {{"Id", "2"}}}}, {"Failed", []sqsObject{{{"Id", "3"}, {"SenderFault", true}}}}},
			`{"Successful":[{"Id":"1"},{"Id":"2"}],"Failed":[{"Id":"3","SenderFault":true}]}`,
			`<AResultEntry><Id>1</Id></AResultEntry><AResultEntry><Id>2</Id></AResultEntry><BatchResultErrorEntry><Id>3</Id><SenderFault>true</SenderFault></BatchResultErrorEntry>`},
		{sqsObject{{"Results", []sqsObject{{{"StartedTimestamp", 1700000000000}}}}}, `{"Results":[{"StartedTimestamp":1700000000000}]}`, `<AResultEntry><StartedTimestamp>1700000000000</StartedTimestamp></AResultEntry>`},
		{sqsObject{{"Body", "<a href=\"x\">&amp;\r\n\t'"}}, `{"Body":"<a href=\"x\">&amp;\r\n\t'"}`, "<Body>&lt;a href=\"x\"&gt;&amp;amp;&#13;\n\t'</Body>"},
		{sqsObject{{"Body", "\u2028\U0001F600"}}, `{"Body":"\u2028😀"}`, "<Body>\u2028😀</Body>"},
		{sqsObject{{"Body", "a\x01b\uFFFEc"}}, `{"Body":"a\u0001b` + "\uFFFE" + `c"}`, "<Body>a\uFFFDb\uFFFDc</Body>"},
	} {
		checkDiff(t, "JSON", v.json, string(v.result.appendJSON(nil)))
		got := string(v.result.appendXML(nil, "AResponse", "A"))
		want := v.xml
		if v.result != nil {
			want = `<AResponse xmlns="http://queue.amazonaws.com/doc/2012-11-05/">` + v.xml + `</AResponse>`
		}
		checkDiff(t, "XML", xmlHead+want, got)
	}
}
