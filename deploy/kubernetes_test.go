package deploy

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"sigs.k8s.io/yaml"
)

// Modules that have the schemas, as files, of what the manifests describe.
const (
	kubernetesModule = "k8s.io/kubernetes@v1.37.2"
	kedaModule       = "github.com/kedacore/keda/v2@v2.21.0"
	operatorModule   = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
)

// manifest is an object in a file of kubernetes/, with the fields that the tests read.
type manifest struct {
	APIVersion, Kind string
	Metadata         struct {
		Name, Namespace string
		Labels          map[string]string
	}
	Data map[string]string // of a ConfigMap
	Spec struct {
		Replicas int
		Strategy struct{ RollingUpdate struct{ MaxSurge int } }
		Selector json.RawMessage
		Template struct {
			Metadata struct{ Labels map[string]string }
			Spec     podSpec
		}
		Ports []struct {
			Name             string
			Port, TargetPort any
		}
		JobLabel  string
		Endpoints []struct{ Port, Path string }
		Triggers  []trigger

		SecretTargetRef []struct{ Parameter string }
	}

	file string
	text []byte // JSON
}

type trigger struct {
	Type              string
	Metadata          map[string]string
	AuthenticationRef struct{ Name string }
}

type podSpec struct {
	TerminationGracePeriodSeconds int
	AutomountServiceAccountToken  *bool
	SecurityContext               struct {
		RunAsNonRoot   bool
		RunAsUser      int
		SeccompProfile struct{ Type string }
	}
	InitContainers, Containers []container
	Volumes                    []struct{ Name string }
}

type container struct {
	Name string
	Args []string
	Env  []struct{ Name string }

	Ports []struct {
		Name          string
		ContainerPort int
	}
	StartupProbe, LivenessProbe, ReadinessProbe *probe
	Resources                                   struct{ Requests, Limits map[string]string }
	SecurityContext                             struct {
		AllowPrivilegeEscalation *bool
		ReadOnlyRootFilesystem   bool
		Capabilities             struct{ Drop []string }
	}
	VolumeMounts []struct{ Name, MountPath string }
}

type probe struct {
	HTTPGet        struct{ Path, Port string }
	Exec           struct{ Command []string }
	TimeoutSeconds int
}

// readManifests returns the objects of all files in kubernetes/.
func readManifests(t *testing.T) (all []manifest) {
	t.Helper()
	files, err := filepath.Glob("kubernetes/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no manifests, %v", err)
	}
	for _, file := range files {
		for _, document := range regexp.MustCompile(`(?m)^---$`).Split(string(mustRead(t, file)), -1) {
			text, err := yaml.YAMLToJSONStrict([]byte(document)) // refuses duplicate keys
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			m := manifest{file: file, text: text}
			if err := json.Unmarshal(text, &m); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			all = append(all, m)
		}
	}
	return all
}

// find returns the object of that kind in a file. There must be one.
func find(t *testing.T, all []manifest, file, kind string) manifest {
	t.Helper()
	for _, m := range all {
		if m.file == "kubernetes/"+file && m.Kind == kind {
			return m
		}
	}
	t.Fatalf("%s has no %s", file, kind)
	panic("unreachable")
}

// sidecar returns the container of the server in sidecar.yaml.
func sidecar(t *testing.T, all []manifest) (podSpec, container) {
	t.Helper()
	pod := find(t, all, "sidecar.yaml", "StatefulSet").Spec.Template.Spec
	if len(pod.InitContainers) != 1 || pod.InitContainers[0].Name != "queued" {
		t.Fatal("sidecar.yaml has no sidecar queued")
	}
	return pod, pod.InitContainers[0]
}

// flag returns the value of a flag in the arguments.
func (c container) flag(t *testing.T, name string) string {
	t.Helper()
	for _, arg := range c.Args {
		if value, ok := strings.CutPrefix(arg, "-"+name+"="); ok {
			return value
		}
	}
	t.Fatalf("container %s has no flag -%s", c.Name, name)
	panic("unreachable")
}

func (c container) number(t *testing.T, name string) int {
	t.Helper()
	n, err := strconv.Atoi(c.flag(t, name))
	if err != nil {
		t.Fatalf("flag -%s: %v", name, err)
	}
	return n
}

// moduleDir returns the directory of a module, which go downloads if necessary.
func moduleDir(t *testing.T, module string) string {
	t.Helper()
	download := exec.CommandContext(t.Context(), "go", "mod", "download", "-json", module)
	download.Dir = t.TempDir() // not a module, whose go.sum would change
	out, err := download.Output()
	var result struct{ Dir, Error string }
	if json.Unmarshal(out, &result); err != nil || result.Dir == "" {
		t.Fatalf("go mod download %s: %v %s", module, err, result.Error)
	}
	return result.Dir
}

// Fields that the schema does not have are errors too. The API server would ignore them.
func TestManifestsMatchTheSchemasOfTheirKinds(t *testing.T) {
	t.Parallel()
	compiler := jsonschema.NewCompiler()
	compiler.DefaultDraft(jsonschema.Draft7)
	locations := map[string]string{} // by apiVersion and kind

	var swagger struct {
		Definitions map[string]any `json:"definitions"`
	}
	if err := json.Unmarshal(mustRead(t, filepath.Join(moduleDir(t, kubernetesModule), "api/openapi-spec/swagger.json")), &swagger); err != nil {
		t.Fatal(err)
	}
	for name, definition := range swagger.Definitions {
		kinds, _ := definition.(map[string]any)["x-kubernetes-group-version-kind"].([]any)
		if len(kinds) == 1 { // others belong to all kinds, such as DeleteOptions
			kind := kinds[0].(map[string]any)
			version := strings.TrimPrefix(fmt.Sprintf("%s/%s", kind["group"], kind["version"]), "/")
			locations[fmt.Sprintf("%s %s", version, kind["kind"])] = "swagger.json#/definitions/" + name
		}
	}
	if err := compiler.AddResource("swagger.json", closed(map[string]any{"definitions": swagger.Definitions})); err != nil {
		t.Fatal(err)
	}
	keda := filepath.Join(moduleDir(t, kedaModule), "config/crd/bases")
	for _, path := range []string{
		filepath.Join(moduleDir(t, operatorModule), "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml"),
		filepath.Join(keda, "keda.sh_scaledobjects.yaml"),
		filepath.Join(keda, "keda.sh_triggerauthentications.yaml"),
	} {
		var crd struct {
			Spec struct {
				Group    string
				Names    struct{ Kind string }
				Versions []struct {
					Name   string
					Schema struct{ OpenAPIV3Schema map[string]any }
				}
			}
		}
		if err := yaml.Unmarshal(mustRead(t, path), &crd); err != nil {
			t.Fatal(err)
		}
		for _, version := range crd.Spec.Versions {
			location := fmt.Sprintf("%s-%s.json", crd.Spec.Names.Kind, version.Name)
			locations[fmt.Sprintf("%s/%s %s", crd.Spec.Group, version.Name, crd.Spec.Names.Kind)] = location
			if err := compiler.AddResource(location, closed(version.Schema.OpenAPIV3Schema)); err != nil {
				t.Fatal(err)
			}
		}
	}

	for _, m := range readManifests(t) {
		location, ok := locations[m.APIVersion+" "+m.Kind]
		if !ok {
			t.Errorf("%s: there is no %s %s", m.file, m.APIVersion, m.Kind)
			continue
		}
		schema, err := compiler.Compile(location)
		if err != nil {
			t.Fatal(err)
		}
		object, err := jsonschema.UnmarshalJSON(strings.NewReader(string(m.text)))
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(object); err != nil {
			t.Errorf("%s: %s %s: %v", m.file, m.Kind, m.Metadata.Name, err)
		}
	}
}

// closed returns a schema of Kubernetes as a JSON schema that refuses unknown fields.
func closed(schema any) any {
	switch v := schema.(type) {
	case []any:
		for i := range v {
			v[i] = closed(v[i])
		}
	case map[string]any:
		for name := range v {
			v[name] = closed(v[name])
		}
		_, properties := v["properties"].(map[string]any)
		if _, open := v["x-kubernetes-preserve-unknown-fields"]; properties && !open && v["additionalProperties"] == nil {
			v["additionalProperties"] = false
		}
		if v["format"] == "int-or-string" {
			v["type"] = []any{"integer", "string"}
		}
	}
	return schema
}

// The values of KEDA's triggers are free text in its schema. Its scalers state the names
// in the tags of their types.
func TestScalersKnowTheMetadataOfTheTriggers(t *testing.T) {
	t.Parallel()
	scalers := filepath.Join(moduleDir(t, kedaModule), "pkg/scalers")
	tags := regexp.MustCompile(`keda:"name=([\w;]+), *order=([\w;]+)([^"]*)"`)
	all := readManifests(t)
	for _, file := range []string{"keda.yaml", "keda-sqs.yaml"} {
		credentials := map[string]bool{}
		for _, ref := range find(t, all, file, "TriggerAuthentication").Spec.SecretTargetRef {
			credentials[ref.Parameter] = true
		}
		for _, trigger := range find(t, all, file, "ScaledObject").Spec.Triggers {
			if trigger.AuthenticationRef.Name != find(t, all, file, "TriggerAuthentication").Metadata.Name {
				t.Errorf("%s: %s has no credentials", file, trigger.Type)
			}
			source := map[string]string{"metrics-api": "metrics_api_scaler.go", "aws-sqs-queue": "aws_sqs_queue_scaler.go"}[trigger.Type]
			if source == "" {
				t.Fatalf("%s: unknown type %s", file, trigger.Type)
			}
			text := string(mustRead(t, filepath.Join(scalers, source)))
			if trigger.Type == "metrics-api" {
				text += string(mustRead(t, filepath.Join(scalers, "authentication/authentication_types.go")))
			} else if !credentials["awsAccessKeyID"] || !credentials["awsSecretAccessKey"] {
				t.Errorf("%s: has the credentials %v", file, credentials)
			}
			known := map[string]bool{}
			for _, m := range tags.FindAllStringSubmatch(text, -1) {
				names := strings.Split(m[1], ";")
				for _, name := range names {
					known[name] = true
				}
				required := !strings.Contains(m[3], "optional") && !strings.Contains(m[3], "default")
				if _, ok := trigger.Metadata[names[0]]; required && m[2] == "triggerMetadata" && !ok {
					t.Errorf("%s: %s lacks %s", file, trigger.Type, names[0])
				}
			}
			if len(known) < 5 {
				t.Fatalf("%s states the names %v", source, known)
			}
			for name := range trigger.Metadata {
				if !known[name] {
					t.Errorf("%s: %s does not know %s", file, trigger.Type, name)
				}
			}
		}
	}
}

// The checks of the level "restricted" of Kubernetes' Pod Security Standards, and a root
// filesystem that cannot be written.
func TestContainersHaveNoPrivileges(t *testing.T) {
	t.Parallel()
	pods := 0
	for _, m := range readManifests(t) {
		pod := m.Spec.Template.Spec
		containers := append(slices.Clone(pod.InitContainers), pod.Containers...)
		if len(containers) == 0 {
			continue
		}
		pods++
		if s := pod.SecurityContext; !s.RunAsNonRoot || s.RunAsUser == 0 || s.SeccompProfile.Type != "RuntimeDefault" {
			t.Errorf("%s: security context %+v", m.file, s)
		}
		if pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken {
			t.Errorf("%s: the Pod gets a token of the API server", m.file)
		}
		for _, c := range containers {
			s := c.SecurityContext
			if s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || !s.ReadOnlyRootFilesystem || !slices.Equal(s.Capabilities.Drop, []string{"ALL"}) {
				t.Errorf("%s: container %s: security context %+v", m.file, c.Name, s)
			}
			if c.Resources.Requests["cpu"] == "" || c.Resources.Requests["memory"] == "" || c.Resources.Limits["memory"] == "" {
				t.Errorf("%s: container %s: resources %+v", m.file, c.Name, c.Resources)
			}
			for _, mount := range c.VolumeMounts {
				claimed := mount.Name == "data" && strings.Contains(string(m.text), `"volumeClaimTemplates"`)
				if !claimed && !slices.Contains(pod.Volumes, struct{ Name string }{mount.Name}) {
					t.Errorf("%s: container %s mounts %s, which does not exist", m.file, c.Name, mount.Name)
				}
			}
		}
	}
	if pods != 2 {
		t.Errorf("there are %d Pods", pods)
	}
}

// seconds returns a constant of the server's source text.
func seconds(t *testing.T, file, name string) int {
	t.Helper()
	m := regexp.MustCompile(`\b` + name + `\s+= (\d+) \* time\.Second`).FindSubmatch(mustRead(t, "../"+file))
	if m == nil {
		t.Fatalf("%s has no %s", file, name)
	}
	n, _ := strconv.Atoi(string(m[1]))
	return n
}

func TestNumbersOfTheManifestsFitEachOther(t *testing.T) {
	t.Parallel()
	all := readManifests(t)
	deployment := find(t, all, "queued.yaml", "Deployment")
	pod := deployment.Spec.Template.Spec
	c := pod.Containers[0]
	stop := seconds(t, "serve.go", "drainTimeout") + seconds(t, "serve.go", "closeTimeout")

	delay, err := time.ParseDuration(c.flag(t, "drain-delay"))
	if err != nil {
		t.Fatal(err)
	}
	if least := int(delay.Seconds()) + stop + 5; pod.TerminationGracePeriodSeconds < least {
		t.Errorf("queued.yaml: terminationGracePeriodSeconds is %d, want at least %d", pod.TerminationGracePeriodSeconds, least)
	}
	// PostgreSQL accepts 100 connections by default and reserves 3.
	servers := deployment.Spec.Replicas + deployment.Spec.Strategy.RollingUpdate.MaxSurge
	if n := servers * c.number(t, "max-database-connections"); n > 97 {
		t.Errorf("queued.yaml: %d servers open %d connections to PostgreSQL", servers, n)
	}

	sidecarPod, sidecar := sidecar(t, all)
	if least := stop + 2*seconds(t, "postgres.go", "postgresStop") + 5; sidecarPod.TerminationGracePeriodSeconds < least {
		t.Errorf("sidecar.yaml: terminationGracePeriodSeconds is %d, want at least %d", sidecarPod.TerminationGracePeriodSeconds, least)
	}
	if m := regexp.MustCompile(`baseMemory\s+= 256 << 20\n\s+connectionMemory = 32 << 10\n`).Find(mustRead(t, "../serve.go")); m == nil {
		t.Error("memoryLimit has changed")
	}
	used := 256 + c.number(t, "max-connections")*32>>10 + c.number(t, "max-buffered-bytes")>>20
	if limit := mebibytes(t, c); used > limit || used > 512 {
		t.Errorf("queued.yaml: the server uses up to %d MiB of %d MiB", used, limit)
	}
	if limit := mebibytes(t, sidecar); limit < 128+2*64 {
		t.Errorf("sidecar.yaml: limit %d MiB for PostgreSQL's buffers of 128 MiB, its processes, and the server", limit)
	}

	health := seconds(t, "internal/shell/health.go", "healthTimeout")
	for _, p := range []*probe{sidecar.StartupProbe, sidecar.LivenessProbe} {
		if p == nil || p.TimeoutSeconds <= health {
			t.Errorf("sidecar.yaml: probe %+v ends before the check, which takes up to %d s", p, health)
		}
	}
}

// mebibytes returns the limit of the container's memory.
func mebibytes(t *testing.T, c container) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSuffix(c.Resources.Limits["memory"], "Mi"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestObjectsOfTheManifestsReferToEachOther(t *testing.T) {
	t.Parallel()
	all := readManifests(t)
	deployment := find(t, all, "queued.yaml", "Deployment")
	labels := deployment.Spec.Template.Metadata.Labels
	var selector struct{ MatchLabels map[string]string }
	for _, kind := range []string{"Deployment", "PodDisruptionBudget"} {
		json.Unmarshal(find(t, all, "queued.yaml", kind).Spec.Selector, &selector)
		if fmt.Sprint(selector.MatchLabels) != fmt.Sprint(labels) {
			t.Errorf("%s selects %v, the Pods have %v", kind, selector.MatchLabels, labels)
		}
	}
	service := find(t, all, "queued.yaml", "Service")
	var selected map[string]string
	json.Unmarshal(service.Spec.Selector, &selected)
	if fmt.Sprint(selected) != fmt.Sprint(labels) {
		t.Errorf("the Service selects %v, the Pods have %v", selected, labels)
	}
	port := deployment.Spec.Template.Spec.Containers[0].Ports[0]
	if p := service.Spec.Ports[0]; p.TargetPort != port.Name || p.Port != float64(port.ContainerPort) {
		t.Errorf("the Service has the port %v, the server %v", p, port)
	}
	monitor := find(t, all, "servicemonitor.yaml", "ServiceMonitor").Spec
	json.Unmarshal(monitor.Selector, &selector)
	if fmt.Sprint(selector.MatchLabels) != fmt.Sprint(service.Metadata.Labels) || monitor.Endpoints[0].Port != service.Spec.Ports[0].Name {
		t.Errorf("the ServiceMonitor selects %v, port %s", selector.MatchLabels, monitor.Endpoints[0].Port)
	}
	// The alerts and the dashboard of Grafana expect this job.
	if job := service.Metadata.Labels[monitor.JobLabel]; job != "queued" {
		t.Errorf("the job is %q, want queued", job)
	}
	address := fmt.Sprintf("http://%s.%s.svc.cluster.local:%d/", service.Metadata.Name, service.Metadata.Namespace, port.ContainerPort)
	for _, file := range []string{"keda.yaml", "keda-sqs.yaml"} {
		for _, trigger := range find(t, all, file, "ScaledObject").Spec.Triggers {
			if url := trigger.Metadata["url"] + trigger.Metadata["queueURL"]; !strings.HasPrefix(url, address) {
				t.Errorf("%s asks %s, the server is at %s", file, url, address)
			}
		}
	}
}

// The test starts servers with the arguments of the manifests, except for addresses and
// paths, and sends them the requests of the probes, of Prometheus and of KEDA.
func TestServersRunWithTheArgumentsOfTheManifests(t *testing.T) {
	t.Parallel()
	all := readManifests(t)
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const token = "5f0c2a7e-94d1-4b53-a1f8"
	replaced := map[string]string{
		"listen":     "127.0.0.1:0",
		"token-file": write("tokens.json", `{"tokens":[{"name":"all","token":"`+token+`","admin":true,"metrics":true,"get":["*"]}]}`),
		"data-dir":   "",
		"topology":   write("topology.json", find(t, all, "sidecar.yaml", "ConfigMap").Data["topology.json"]),
	}
	program := mustBuild(t, "..")
	begin := func(c container) *server {
		var args []string
		for _, arg := range c.Args {
			name, _, _ := strings.Cut(strings.TrimPrefix(arg, "-"), "=")
			if value, ok := replaced[name]; !ok {
				args = append(args, arg)
			} else if value != "" {
				args = append(args, "-"+name+"="+value)
			}
		}
		return startServer(t, program, args...)
	}

	deployment := find(t, all, "queued.yaml", "Deployment").Spec.Template.Spec.Containers[0]
	replaced["drain-delay"] = "0s"       // the test stops the server
	replaced["log-format"] = "text"      // startServer reads the log
	for _, env := range deployment.Env { // the server has a private PostgreSQL here
		if env.Name != "QUEUED_DATABASE_URL" {
			t.Errorf("the Deployment sets %s", env.Name)
		}
	}
	s := begin(deployment)
	request := func(path string) (int, map[string]any) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), "GET", s.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+token)
		response, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		var body map[string]any
		json.NewDecoder(response.Body).Decode(&body)
		return response.StatusCode, body
	}
	for _, path := range []string{
		deployment.LivenessProbe.HTTPGet.Path,
		deployment.ReadinessProbe.HTTPGet.Path,
		find(t, all, "servicemonitor.yaml", "ServiceMonitor").Spec.Endpoints[0].Path,
	} {
		if status, _ := request(path); status != 200 {
			t.Errorf("GET %s = %d", path, status)
		}
	}

	_, c := sidecar(t, all)
	replaced["token-file"] = ""
	s = begin(c) // its topology has the queue of the triggers
	for _, trigger := range find(t, all, "keda.yaml", "ScaledObject").Spec.Triggers {
		_, path, _ := strings.Cut(strings.TrimPrefix(trigger.Metadata["url"], "http://"), "/")
		status, body := request("/" + path)
		var value any = body
		for _, name := range strings.Split(trigger.Metadata["valueLocation"], ".") {
			object, _ := value.(map[string]any)
			value = object[name]
		}
		if _, ok := value.(float64); !ok || status != 200 {
			t.Errorf("GET /%s = %d %v, which has no number %s", path, status, body, trigger.Metadata["valueLocation"])
		}
	}
	for _, p := range []*probe{c.StartupProbe, c.LivenessProbe} {
		args := append(slices.Clone(p.Exec.Command[1:]), "-url", s.url)
		if out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput(); err != nil {
			t.Errorf("queued %v: %v\n%s", args, err, out)
		}
	}
}

// The page on containers names every file of kubernetes/.
func TestPageOnContainersNamesTheManifests(t *testing.T) {
	t.Parallel()
	page := string(mustRead(t, "../docs/containers.md"))
	err := fs.WalkDir(os.DirFS("."), "kubernetes", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() && !strings.Contains(page, "(../deploy/"+path+")") {
			t.Errorf("docs/containers.md does not name %s", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
