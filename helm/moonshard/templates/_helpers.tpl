{{/* Name of the release's objects. */}}
{{- define "moonshard.name" -}}
{{- $default := contains .Chart.Name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) -}}
{{- default $default .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* What a Service or a policy finds the pods of one component by. Argument: (list $ COMPONENT). */}}
{{- define "moonshard.selector" -}}
app.kubernetes.io/name: moonshard
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Labels of every object of one component. Argument: (list $ COMPONENT). */}}
{{- define "moonshard.labels" -}}
{{- $ := index . 0 -}}
{{ include "moonshard.selector" . }}
app.kubernetes.io/version: {{ $.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $.Chart.Name $.Chart.Version }}
{{- end }}

{{/* metadata of an object. Argument: (list $ COMPONENT NAME-SUFFIX). */}}
{{- define "moonshard.metadata" -}}
name: {{ include "moonshard.name" (index . 0) }}{{ index . 2 }}
namespace: {{ (index . 0).Release.Namespace }}
labels:
  {{- include "moonshard.labels" . | nindent 2 }}
{{- end }}

{{/* An image. Argument: (list $ "slim" | "torch"). */}}
{{- define "moonshard.image" -}}
{{- $image := (index . 0).Values.image -}}
{{- $digest := index $image.digests (index . 1) -}}
{{- if $digest }}
image: {{ $image.repository }}@{{ $digest }}
{{- else }}
image: {{ $image.repository }}:{{ default (index . 0).Chart.AppVersion $image.tag }}{{ index $image (index . 1) }}
{{- end }}
imagePullPolicy: {{ $image.pullPolicy }}
{{- end }}

{{/* host of a Service, as other pods resolve it. Argument: (list $ NAME-SUFFIX). */}}
{{- define "moonshard.host" -}}
{{ include "moonshard.name" (index . 0) }}-{{ index . 1 }}.{{ (index . 0).Release.Namespace }}.svc
{{- end }}

{{/* All replicas of a role, as processes find them: every record of its headless Service. Argument: (list $ ROLE). */}}
{{- define "moonshard.place" -}}
dns:{{ include "moonshard.host" . }}:50051
{{- end }}

{{/* Whether a role exists at all: its name or nothing. Argument: (list $ ROLE). */}}
{{- define "moonshard.has" -}}
{{- $role := index . 1 -}}
{{- $values := index (index . 0).Values $role -}}
{{- $shards := hasKey $values "shards" | ternary (get $values "shards") 1 -}}
{{- if and (gt (int $values.maxReplicas) 0) (gt (int $shards) 0) }}{{ $role }}{{ end -}}
{{- end }}

{{/* Whether `helm test` can ask the gateway: without keys, or with one of its own. */}}
{{- define "moonshard.hasSmoke" -}}
{{- if or (not .Values.gateway.keysSecret) .Values.gateway.smokeKeySecret }}true{{ end -}}
{{- end }}

{{/* Whether the chart runs Redis itself. */}}
{{- define "moonshard.ownRedis" -}}
{{- if not .Values.store.urls }}true{{ end -}}
{{- end }}

{{/* Whether API keys have limits, which Redis counts for all gateways. */}}
{{- define "moonshard.limits" -}}
{{- if or .Values.gateway.requestsPerMinute .Values.gateway.tokensPerMinute }}true{{ end -}}
{{- end }}

{{/* The Redis servers of the chart: name suffix -> memory, what happens when it is full, key of its resources. */}}
{{- define "moonshard.redisServers" -}}
{{- if include "moonshard.ownRedis" . }}
{{- range $i := until (int .Values.redis.instances) }}
redis-{{ $i }}: {memory: {{ $.Values.redis.maxMemory }}, policy: allkeys-lru, resources: resources}
{{- end }}
{{- if include "moonshard.limits" . }}
redis-limits: {memory: {{ .Values.redis.limitsMaxMemory }}, policy: noeviction, resources: limitsResources}
{{- end }}
{{- end }}
{{- end }}

{{/* Comma list of the instances that values spread over. */}}
{{- define "moonshard.storeUrls" -}}
{{- $urls := .Values.store.urls -}}
{{- if include "moonshard.ownRedis" . -}}
{{- range $i := until (int .Values.redis.instances) -}}
{{- $urls = append $urls (printf "redis://%s:6379/0" (include "moonshard.host" (list $ (printf "redis-%d" $i)))) -}}
{{- end -}}
{{- end -}}
{{ join "," $urls }}
{{- end }}

{{/* The roles that the autoscaler owns: name -> workload, shards, bounds in whole replicas, load of one replica. */}}
{{- define "moonshard.scaledRoles" -}}
{{- $targets := dict "vision" "targetRequests" "prefill" "targetQueuedTokens" "decode" "targetGenerations" "expert" "targetGenerations" -}}
{{- $roles := dict -}}
{{- range $role, $target := $targets -}}
{{- $values := index $.Values $role -}}
{{- $byHpa := and (eq $role "vision") (gt (int $values.minReplicas) 0) -}}
{{- if and (include "moonshard.has" (list $ $role)) (not $byHpa) -}}
{{- $kind := eq $role "vision" | ternary "deployment" "statefulset" -}}
{{- $_ := set $roles $role (dict
      "workload" (printf "%s/%s-%s" $kind (include "moonshard.name" $) $role)
      "shards" (int (get $values "shards" | default 1))
      "min" (int $values.minReplicas)
      "max" (int $values.maxReplicas)
      "target" (int (index $values $target))) -}}
{{- end -}}
{{- end -}}
{{ toJson $roles }}
{{- end }}

{{/* The spec.replicas of a workload, unless something scales it: then an upgrade must leave the number alone. */}}
{{- define "moonshard.replicas" -}}
{{- $ := index . 0 -}}
{{- $role := index . 1 -}}
{{- $values := index $.Values $role -}}
{{- $isFixed := or (eq $.Values.autoscaling.mode "off") (eq $role "gateway" "tokenizer") -}}
{{- $low := int (get $values "replicas" | default (get $values "minReplicas")) -}}
{{- if and $isFixed (or (hasKey $values "shards") (le (int $values.maxReplicas) $low)) }}
replicas: {{ mul $low (int (get $values "shards" | default 1)) }}
{{- end }}
{{- end }}
