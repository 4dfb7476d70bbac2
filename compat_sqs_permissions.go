package main

import (
	"encoding/json"

	"queued/internal/rawjson"
)

// maxSQSPermissions is the maximum number of actions in an AddPermission.
const maxSQSPermissions = 7

// sqsPolicy is a policy of a queue. It is stored and returned, and has no effect.
type sqsPolicy struct {
	members    []sqsParameter // in JSON, in order
	statements []json.RawMessage
}

// sqsStatement is the statement that AddPermission adds to a policy.
type sqsStatement struct {
	Label     string       `json:"Sid"`
	Effect    string       `json:"Effect"`
	Principal sqsPrincipal `json:"Principal"`
	Action    oneOrMore    `json:"Action"`
	Resource  string       `json:"Resource"`
}

type sqsPrincipal struct {
	AWS oneOrMore `json:"AWS"`
}

// oneOrMore is a list in JSON, or a string if it has one.
type oneOrMore []string

func (v oneOrMore) MarshalJSON() ([]byte, error) {
	if len(v) == 1 {
		return rawjson.Quote(v[0]), nil
	}
	return json.Marshal([]string(v))
}

func (s *server) sqsAddPermission(r *request, in *sqsInput) (sqsObject, error) {
	label, accounts, actions := in.text("Label"), in.texts("AWSAccountIds"), in.texts("Actions")
	switch {
	case in.err() != nil:
		return nil, in.err()
	case label == "":
		return nil, sqsMissing("Label")
	case !validSQSWord(label):
		return nil, sqsInvalidValue(label, "Label", "Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length")
	case len(accounts) == 0:
		return nil, sqsMissing("AWSAccountIds")
	case len(actions) == 0:
		return nil, sqsMissing("Actions")
	case len(actions) > maxSQSPermissions:
		return nil, sqsOverLimit.errorf("%d Actions were found, maximum allowed is %d.", len(actions), maxSQSPermissions)
	}
	v := sqsStatement{Label: label, Effect: "Allow", Resource: r.sqsARN(r.queueID)}
	for _, account := range accounts {
		if !isVisibleASCII(account, maxIDLength) {
			return nil, sqsInvalidValue(account, "PrincipalId", "Unable to verify.")
		}
		v.Principal.AWS = append(v.Principal.AWS, "arn:aws:iam::"+account+":root")
	}
	for _, action := range actions {
		if action != "*" && !validSQSWord(action) {
			return nil, sqsInvalidValue(action, "ActionName", "Not a valid action name.")
		}
		v.Action = append(v.Action, "SQS:"+action)
	}
	return nil, s.changeSQSQueue(r, func(q *sqsQueue) error {
		policy := q.policy()
		for _, statement := range policy.statements {
			if labelOf(statement) == label {
				return sqsInvalidValue(label, "Label", "Already exists.")
			}
		}
		policy.statements = append(policy.statements, appendJSON(nil, v))
		text := policy.json()
		if len(text) > maxSQSText {
			return sqsOverLimit.errorf("The policy of the queue would be longer than %d bytes.", maxSQSText)
		}
		q.keep("Policy", text)
		return nil
	})
}

func (s *server) sqsRemovePermission(r *request, in *sqsInput) (sqsObject, error) {
	label := in.text("Label")
	switch {
	case in.err() != nil:
		return nil, in.err()
	case label == "":
		return nil, sqsMissing("Label")
	}
	return nil, s.changeSQSQueue(r, func(q *sqsQueue) error {
		policy := q.policy()
		var rest []json.RawMessage
		for _, statement := range policy.statements {
			if labelOf(statement) != label {
				rest = append(rest, statement)
			}
		}
		switch {
		case len(rest) == len(policy.statements):
			return sqsInvalidValue(label, "Label", "can't find label on existing policy.")
		case len(rest) == 0:
			q.keep("Policy", "")
		default:
			policy.statements = rest
			q.keep("Policy", policy.json())
		}
		return nil
	})
}

// policy returns the policy of the queue, or an empty one. A policy can have one statement
// without a list.
func (q *sqsQueue) policy() (v sqsPolicy) {
	text := q.SQS.Attributes["Policy"]
	if text == "" {
		text = `{"Version":"2008-10-17","Id":"` + q.arn(q.ID) + `/SQSDefaultPolicy","Statement":[]}`
	}
	rawjson.WalkObject([]byte(text), func(name string, value []byte) {
		if name != "Statement" {
			v.members = append(v.members, sqsParameter{name, value})
			return
		}
		v.statements = nil
		if json.Unmarshal(value, &v.statements) != nil {
			v.statements = []json.RawMessage{value}
		}
	})
	return v
}

// json returns the policy in JSON. Its statements come after the members that it has besides.
func (v *sqsPolicy) json() string {
	b := []byte{'{'}
	for _, m := range v.members {
		b = append(append(append(rawjson.AppendQuote(b, m.name), ':'), m.value...), ',')
	}
	return string(append(appendJSON(append(b, `"Statement":`...), v.statements), '}'))
}

// labelOf returns the label of a statement.
func labelOf(statement []byte) string {
	var v struct {
		Label string `json:"Sid"`
	}
	json.Unmarshal(statement, &v)
	return v.Label
}
