{{- define "diptych.serveConfig" -}}
{{- .Values.serveConfig | default (.Files.Get (printf "overlays/%s/applications.yaml" .Values.profile)) -}}
{{- end -}}

{{/* Change a pod's spec, in place, to what holds for all. */}}
{{- define "diptych.pod" -}}
{{- $secrets := list -}}
{{- range .Values.imagePullSecrets }}{{ $secrets = append $secrets (dict "name" .) }}{{ end -}}
{{- $_ := set .pod "imagePullSecrets" $secrets -}}
{{- if .Values.openshift -}}
{{- range list "runAsUser" "runAsGroup" "fsGroup" "fsGroupChangePolicy" }}{{ $_ := unset $.pod.securityContext . }}{{ end -}}
{{- end -}}
{{- end -}}

{{/* Change a group, in place: its numbers, its image, where it may run. */}}
{{- define "diptych.group" -}}
{{- range list "replicas" "minReplicas" "maxReplicas" }}{{ $_ := set $.group . (get $.numbers .) }}{{ end -}}
{{- $pod := .group.template.spec -}}
{{- $container := index $pod.containers 0 -}}
{{- $_ := set $container "image" .image -}}
{{- $_ := set (index $pod.topologySpreadConstraints 0) "whenUnsatisfiable" .Values.spread -}}
{{- include "diptych.pod" (dict "pod" $pod "Values" .Values) -}}
{{- if .Values.tracing -}}
{{- range $container.env }}{{ if eq .name "OTEL_EXPORTER_OTLP_ENDPOINT" }}{{ $_ := set . "value" $.Values.tracing }}{{ end }}{{ end -}}
{{- end -}}
{{- end -}}

{{/* Change the volume of weights, in place, to what is wanted. */}}
{{- define "diptych.cache" -}}
{{- if has .Values.cache.kind (list "claim" "shared") -}}
{{- $_ := unset .volume "emptyDir" -}}
{{- $_ := set .volume "persistentVolumeClaim" (dict "claimName" "diptych-models") -}}
{{- else if eq .Values.cache.kind "per-pod" -}}
{{- $_ := unset .volume "emptyDir" -}}
{{- $claim := dict "accessModes" (list "ReadWriteOnce") "resources" (dict "requests" (dict "storage" .size)) -}}
{{- with .Values.cache.storageClassName }}{{ $_ := set $claim "storageClassName" . }}{{ end -}}
{{- $_ := set .volume "ephemeral" (dict "volumeClaimTemplate" (dict "spec" $claim)) -}}
{{- end -}}
{{- end -}}

{{/* Refuse values that contradict each other: KubeRay would refuse them after the release, or pods would wait for ever. */}}
{{- define "diptych.refuse" -}}
{{- $gateways := merge (dict "name" "gateways") .Values.gateways -}}
{{- range prepend .Values.models $gateways -}}
{{- if not (and (le (int .minReplicas) (int .replicas)) (le (int .replicas) (int .maxReplicas))) -}}
{{- fail (printf "%s: minReplicas %d, replicas %d and maxReplicas %d are out of order: set all three." .name (int .minReplicas) (int .replicas) (int .maxReplicas)) -}}
{{- end -}}
{{- end -}}
{{- range (include "diptych.serveConfig" . | fromYaml).applications -}}
{{- if eq .import_path "deployments.app:build" -}}
{{- fail "serveConfig is a serve.yaml, and Serve takes an application for each model: diptych deploy serve.yaml --print > FILE writes it." -}}
{{- end -}}
{{- if eq .import_path "deployments.app:build_gateways" -}}
{{- $gateway := index .deployments 0 -}}
{{- $scaling := $gateway.autoscaling_config | default dict -}}
{{- $most := int ($scaling.max_replicas | default $gateway.num_replicas | default 1) -}}
{{- if or (gt $most (int $gateways.maxReplicas)) (lt $most (int $gateways.minReplicas)) -}}
{{- fail (printf "The Serve config has %d gateways, and there are %d to %d pods, of which each takes one: set gateway.replicas in serve.yaml, and gateways, to the same number." $most (int $gateways.minReplicas) (int $gateways.maxReplicas)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $pods := 0 -}}
{{- range .Values.models }}{{ $pods = add $pods .maxReplicas }}{{ end -}}
{{- if and (eq .Values.cache.kind "claim") (gt (int $pods) 1) -}}
{{- fail (printf "cache.kind claim is a volume of one node, and up to %d pods of models want it: take per-pod or shared." (int $pods)) -}}
{{- end -}}
{{- with .Values.incrementalUpgrade -}}
{{- if not $.Values.autoscaler -}}
{{- fail "incrementalUpgrade needs autoscaler: true, as Ray's autoscaler moves the pods from one cluster to the other." -}}
{{- end -}}
{{- range list "gatewayClassName" "stepSizePercent" "intervalSeconds" -}}
{{- if not (hasKey $.Values.incrementalUpgrade .) -}}
{{- fail (printf "incrementalUpgrade has no %s: set it, as k8s/chart/profiles/incremental-upgrade.yaml does." .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
